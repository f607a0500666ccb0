package publish

import (
	"errors"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// clusterReplicas is how many replicas a stream gets where nobody said: three
// survive the loss of one server, and a cluster can have them or none.
const clusterReplicas = 3

// wantedReplicas returns how many replicas to ask for: as set, or as many as
// the broker may have.
func wantedReplicas(nc *nats.Conn, set int) int {
	switch {
	case set > 0:
		return set
	case nc.ConnectedClusterName() == "":
		return 1
	}
	return clusterReplicas
}

// tooFewServers says whether the broker refused a number of replicas.
func tooFewServers(err error) bool {
	// JSClusterNoPeersErrF and JSStreamReplicasNotSupportedErr of the server.
	const noPeers, notSupported = 10005, 10074
	var api *jetstream.APIError
	return errors.As(err, &api) && (api.ErrorCode == noPeers || api.ErrorCode == notSupported)
}

// withReplicas makes something with the replicas set, or, where nobody said how
// many, with as many as the broker has servers for.
func withReplicas(nc *nats.Conn, set int, make func(n int) error) error {
	n := wantedReplicas(nc, set)
	err := make(n)
	if set == 0 && n > 1 && tooFewServers(err) {
		return make(1)
	}
	return err
}
