package publish

import (
	"errors"

	"github.com/nats-io/nats.go/jetstream"
)

// clusterReplicas is how many replicas a stream gets in a cluster if the
// configuration does not say: with three it survives the loss of one server.
const clusterReplicas = 3

// wantedReplicas returns how many replicas to ask for: set, if it is not 0, else
// clusterReplicas in a cluster and 1 elsewhere. Whether the servers of another JetStream
// domain are a cluster is not known.
func wantedReplicas(js jetstream.JetStream, set int) int {
	switch {
	case set > 0:
		return set
	case js.Options().Domain == "" && js.Conn().ConnectedClusterName() == "":
		return 1
	}
	return clusterReplicas
}

// tooFewServers says whether the broker refused the number of replicas.
func tooFewServers(err error) bool {
	// The server's JSClusterNoPeersErrF and JSStreamReplicasNotSupportedErr.
	const noPeers, notSupported = 10005, 10074
	var api *jetstream.APIError
	return errors.As(err, &api) && (api.ErrorCode == noPeers || api.ErrorCode == notSupported)
}

// withReplicas calls make with the number of replicas to ask for. If set is 0 and
// the broker has too few servers for that number, it calls make again with 1.
func withReplicas(js jetstream.JetStream, set int, make func(n int) error) error {
	n := wantedReplicas(js, set)
	err := make(n)
	if set == 0 && n > 1 && tooFewServers(err) {
		return make(1)
	}
	return err
}
