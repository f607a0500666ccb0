package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"bridge/internal/broker"
	"bridge/internal/relation"
	"bridge/internal/stream"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// For each subject of a stream a broker keeps about this many bytes in memory.
	minRowMemory, maxRowMemory = 256, 1024
	// manyRows is how many rows of latest streams one server should hold at most.
	manyRows = 10_000_000
	// smallPayload is a max_payload that is too small for rows of many tables.
	smallPayload = 256 << 10
)

func (r *run) broker(ctx context.Context) {
	if r.cfg.Connect == nil {
		return
	}
	js, err := r.cfg.Connect(ctx)
	if err != nil {
		if r.cfg.Embedded != nil {
			r.embedded(r.cfg.Embedded)
			r.Broker = &Broker{Version: "(embedded, not running)", Servers: 1}
			r.memory(r.Broker)
			return
		}
		r.fail(AreaBroker, "NATS_URL", oneLine(err), broker.Advice(err))
		return
	}
	nc := js.Conn()
	defer nc.Close()
	if err := broker.CheckServer(nc); err != nil {
		r.fail(AreaBroker, "", oneLine(err), "upgrade every nats-server of the cluster")
	}
	b := &Broker{
		Version: nc.ConnectedServerVersion(), Cluster: nc.ConnectedClusterName(),
		Servers: servers(nc), MaxPayload: nc.MaxPayload(),
	}
	b.MaxRow, _ = stream.SizesOf(stream.Config(stream.Layout{}, stream.Meta{}, stream.Settings{}), b.MaxPayload).Room("", nil)
	r.Broker = b
	if b.MaxPayload < smallPayload {
		r.warn(AreaBroker, "", fmt.Sprintf("max_payload is %s: a larger row is replaced by an oversize mark", size(b.MaxPayload)),
			"set max_payload in the server's configuration to 1MB or more")
	}
	if js.Options().Domain == "" { // else it has other servers
		r.replicas(b)
	}
	r.memory(b)
	if r.account(ctx, js) {
		r.streams(ctx, js)
		r.orphans(ctx, js)
	}
}

// embedded checks whether the bridge could start its server. The bridge does not
// run now.
func (r *run) embedded(e *Embedded) {
	l, err := net.Listen("tcp", e.Listen)
	if err != nil {
		r.fail(AreaBroker, "BRIDGE_NATS_LISTEN", "the embedded server can't listen, and no bridge answers there: "+oneLine(err),
			"set BRIDGE_NATS_LISTEN to another address, or set NATS_URL")
	} else {
		l.Close() //nolint:errcheck // it took no connection
	}
	// The directory must take new files. If it does not exist, its nearest parent
	// that exists must.
	dir, err := filepath.Abs(e.Dir)
	for err == nil {
		var st os.FileInfo
		if st, err = os.Stat(dir); err == nil && !st.IsDir() {
			err = fmt.Errorf("%s is not a directory", dir)
		}
		if err == nil || !errors.Is(err, os.ErrNotExist) || dir == filepath.Dir(dir) {
			break
		}
		dir, err = filepath.Dir(dir), nil
	}
	if err == nil {
		var probe string
		if probe, err = os.MkdirTemp(dir, ".bridge-check-"); err == nil {
			err = os.Remove(probe)
		}
	}
	if err != nil {
		r.fail(AreaBroker, "BRIDGE_NATS_DIR", "the embedded server can't keep its files: "+oneLine(err),
			"set BRIDGE_NATS_DIR to a directory that the bridge may write to")
	}
}

// servers counts the servers of the cluster that the server tells its clients of.
func servers(nc *nats.Conn) int {
	names := map[string]bool{}
	for _, s := range append(nc.Servers(), nc.DiscoveredServers()...) {
		names[s[strings.LastIndexAny(s, "/@")+1:]] = true
	}
	return max(1, len(names))
}

// wantedReplicas returns how many replicas the bridge asks for, 0 for any number.
func (r *run) wantedReplicas() int {
	if r.cfg.Replicas == 0 && r.Broker.Servers >= 3 {
		return 3
	}
	return r.cfg.Replicas
}

func (r *run) replicas(b *Broker) {
	switch {
	case r.cfg.Replicas > 1 && b.Cluster == "":
		r.fail(AreaBroker, "BRIDGE_STREAM_REPLICAS", fmt.Sprintf("%d replicas are wanted, but the server is in no cluster", r.cfg.Replicas),
			"set BRIDGE_STREAM_REPLICAS to 1, or run a cluster of servers")
	case r.cfg.Replicas > b.Servers && b.Cluster != "":
		r.warn(AreaBroker, "BRIDGE_STREAM_REPLICAS", fmt.Sprintf("%d replicas are wanted, but the cluster shows only %d servers", r.cfg.Replicas, b.Servers),
			"lower BRIDGE_STREAM_REPLICAS, or add servers")
	case r.cfg.Replicas == 1 && b.Servers >= 3:
		r.warn(AreaBroker, "BRIDGE_STREAM_REPLICAS", fmt.Sprintf("the cluster has %d servers, but each stream is on only one of them", b.Servers),
			"set BRIDGE_STREAM_REPLICAS to 3")
	case r.cfg.Replicas > 1 && r.cfg.Replicas%2 == 0:
		r.warn(AreaBroker, "BRIDGE_STREAM_REPLICAS", fmt.Sprintf("%d replicas survive no more failures than %d", r.cfg.Replicas, r.cfg.Replicas-1),
			"set BRIDGE_STREAM_REPLICAS to an odd number")
	}
}

// memory estimates how much of the broker's memory the latest streams take.
func (r *run) memory(b *Broker) {
	var rows int64
	for _, rel := range r.Relations {
		if rel.OK && rel.History == "latest" {
			rows += max(0, rel.estimate)
		}
	}
	b.MemoryLow, b.MemoryHigh = rows*minRowMemory, rows*maxRowMemory
	if rows > manyRows {
		r.warn(AreaBroker, "", fmt.Sprintf("the streams will keep about %d rows, and each server that has them needs %s to %s of memory for them",
			rows, size(b.MemoryLow), size(b.MemoryHigh)), "add memory, spread the relations over several clusters, or use history=log for some")
	}
}

// account checks the limits of the account. It returns false if JetStream does
// not answer.
func (r *run) account(ctx context.Context, js jetstream.JetStream) bool {
	info, what, do := broker.JetStream(ctx, js)
	if what != "" {
		r.fail(AreaBroker, "", what, do)
		return false
	}
	lim := info.Limits
	if len(info.Tiers) > 0 { // limits by number of replicas; for these checks any tier will do
		for _, t := range info.Tiers {
			lim = t.Limits
		}
	}
	if need := len(r.Relations) + 1; lim.MaxStreams > 0 && lim.MaxStreams < need {
		r.fail(AreaBroker, "", fmt.Sprintf("the account may have %d streams, and %d are needed: one for each relation and one for the leases", lim.MaxStreams, need),
			"raise max_streams of the account")
	}
	if lim.MaxStore == 0 && lim.MaxMemory != 0 {
		r.fail(AreaBroker, "", "the account has no file storage", "raise max_file of the account")
	}
	if lim.MaxStore > 0 && info.Store > uint64(lim.MaxStore)/10*9 {
		r.warn(AreaBroker, "", fmt.Sprintf("%s of %s storage is used", size(int64(info.Store)), size(lim.MaxStore)), "raise max_file of the account")
	}
	if lim.MaxBytesRequired {
		for _, rel := range r.Relations {
			if rel.spec.MaxBytes == 0 {
				r.fail(AreaBroker, rel.Name, "the account takes only streams with max_bytes", "remove max_bytes_required from the account: such a limit would make a latest stream drop rows")
			}
		}
	}
	return true
}

// streams compares the streams that exist with the configuration.
func (r *run) streams(ctx context.Context, js jetstream.JetStream) {
	for i := range r.Relations {
		rel := &r.Relations[i]
		r.topic(ctx, js, rel)
		s, err := js.Stream(ctx, rel.Stream)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			continue
		}
		if err != nil {
			r.fail(AreaBroker, rel.Name, fmt.Sprintf("stream %s: %s", rel.Stream, oneLine(err)), "look at the broker's log")
			continue
		}
		info := s.CachedInfo()
		if c := info.Cluster; c != nil && c.Leader == "" {
			r.warn(AreaBroker, rel.Name, fmt.Sprintf("stream %s has no leader", rel.Stream), "start the servers that hold it")
		}
		rel.Replicas = info.Config.Replicas
		if want := r.wantedReplicas(); want > rel.Replicas {
			r.warn(AreaBroker, rel.Name, fmt.Sprintf("stream %s has %d of %d replicas", rel.Stream, rel.Replicas, want),
				"restart the bridge when all servers of the cluster run")
		}
		if limit := int64(info.Config.MaxMsgSize); limit > 0 && limit < r.Broker.MaxRow {
			r.warn(AreaBroker, rel.Name, fmt.Sprintf("stream %s has max_msg_size %s: a larger row is replaced by an oversize mark", rel.Stream, size(limit)),
				"remove max_msg_size from the stream")
		}
		meta, err := stream.ReadMeta(info.Config)
		if err != nil {
			r.fail(AreaBroker, rel.Name, oneLine(err), "remove the stream, or choose another BRIDGE_STREAM_PREFIX")
			continue
		}
		r.origin(*rel, meta)
	}
}

// topic checks where copies of a relation's rows are to go.
func (r *run) topic(ctx context.Context, js jetstream.JetStream, rel *Relation) {
	to, name := rel.spec.Republish, rel.spec.Name
	l := stream.NewLayout(r.cfg.Prefix, name.Schema, name.Table, rel.spec.History == relation.HistoryLog)
	if err := l.CheckTopic(to); err != nil {
		r.fail(AreaRelation, rel.Name, fmt.Sprintf("republish=%s: %s", to, err), "choose another subject in BRIDGE_TABLES")
		return
	}
	filled, other, err := l.Overlap(ctx, js, to)
	if err != nil {
		r.fail(AreaBroker, rel.Name, oneLine(err), "look at the broker's log")
	}
	if filled != "" {
		r.fail(AreaRelation, rel.Name, fmt.Sprintf("republish=%s would use the subjects of stream %s, which a bridge fills", to, filled), "choose another subject in BRIDGE_TABLES")
	}
	if other != "" {
		r.warn(AreaRelation, rel.Name, fmt.Sprintf("republish=%s: stream %s listens there, but no stream can store copies", to, other),
			"let its consumers read "+l.Stream+", and choose another subject in BRIDGE_TABLES, or delete the stream")
	}
}

// orphans names the streams that nobody writes any more. Without Postgres, or with
// a wrong BRIDGE_TABLES, it is not known whose a stream is.
func (r *run) orphans(ctx context.Context, js jetstream.JetStream) {
	if r.cfg.Orphans == nil || r.source.SystemID == 0 || r.wrongTables() {
		return
	}
	var own []relation.Name
	for _, rel := range r.Relations {
		own = append(own, rel.spec.Name)
	}
	list, err := r.cfg.Orphans(ctx, js, r.source, own)
	if err != nil {
		r.warn(AreaBroker, "", "whether streams are left over could not be found out: "+oneLine(err), "look at the broker's log")
	}
	for _, name := range list {
		r.warn(AreaBroker, name.Quoted(), "a stream of it is left over: no running bridge has it in BRIDGE_TABLES, so no edge is ready",
			"remove it: "+relation.Command("remove", name.Quoted())+"; or run the bridge that has it")
	}
}

// wrongTables says that it is not known which relations there are.
func (r *run) wrongTables() bool {
	return slices.ContainsFunc(r.cfg.Invalid, func(p Problem) bool { return p.Subject == "BRIDGE_TABLES" })
}

// origin compares the database that a stream's rows came from with the one that
// they would come from now.
func (r *run) origin(rel Relation, meta stream.Meta) {
	const anew = "nothing, if this is intended: the stream and its clients will start over"
	switch src := r.source; {
	case src.SystemID == 0:
	case meta.Source.System != src.SystemID || meta.Source.Database != src.Database:
		r.fail(AreaBroker, rel.Name, fmt.Sprintf("stream %s holds rows of database %q of system %d; DATABASE_URL leads to %q of system %d",
			rel.Stream, meta.Source.Database, meta.Source.System, src.Database, src.SystemID), "correct DATABASE_URL or NATS_URL; if this is intended, run: bridge adopt "+rel.Name)
	case meta.Source.Timeline != src.Timeline:
		r.warn(AreaBroker, rel.Name, fmt.Sprintf("Postgres is on timeline %d, the stream on %d: transactions may have been undone", src.Timeline, meta.Source.Timeline), anew)
	case meta.Log != (rel.History == "log"):
		r.warn(AreaBroker, rel.Name, fmt.Sprintf("it now has history=%s, but its stream was made with the other history", rel.History), anew)
	}
}

// size writes a number of bytes for people.
func size(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	f, i := float64(n), 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	return fmt.Sprintf("%.4g %s", f, units[i])
}
