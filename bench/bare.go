package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/nats-io/nats.go"
)

// bareCommand makes this program the bare publisher of item 7: it reads the WAL and publishes the text of each row to
// core NATS, under the subjects of the bridge's copies. It does nothing else: no JSON, no store, no fence, no position. Its
// arguments are the DATABASE_URL, the publication and the NATS_URL.
const bareCommand = "wal-publisher"

// bareReady is what it prints once it reads.
const bareReady = "reading the WAL"

func runBare(args []string) error {
	if len(args) != 3 {
		return errors.New("usage: wal-publisher URL PUBLICATION NATS_URL")
	}
	ctx := context.Background()
	conn, err := connectReplication(ctx, args[0])
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	nc, err := connect(args[2])
	if err != nil {
		return err
	}
	defer nc.Close()
	const slot = "bench_bare"
	if _, err := pglogrepl.CreateReplicationSlot(ctx, conn, slot, "pgoutput", pglogrepl.CreateReplicationSlotOptions{Temporary: true}); err != nil {
		return err
	}
	plugin := []string{"proto_version '1'", "publication_names '" + args[1] + "'"}
	if err := pglogrepl.StartReplication(ctx, conn, slot, 0, pglogrepl.StartReplicationOptions{PluginArgs: plugin}); err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, bareReady)
	prefix := layoutOf("live").Rows()
	prefix = prefix[:len(prefix)-1]
	for {
		msg, err := conn.ReceiveMessage(ctx)
		if err != nil {
			return err
		}
		switch msg := msg.(type) {
		case *pgproto3.ErrorResponse:
			return pgconn.ErrorResponseToPgError(msg)
		case *pgproto3.CopyData:
			if err := publishBare(ctx, conn, nc, prefix, msg.Data); err != nil {
				return err
			}
		}
	}
}

func publishBare(ctx context.Context, conn *pgconn.PgConn, nc *nats.Conn, prefix string, data []byte) error {
	if data[0] != pglogrepl.XLogDataByteID {
		return answerKeepalive(ctx, conn, data)
	}
	x, err := pglogrepl.ParseXLogData(data[1:])
	if err != nil {
		return err
	}
	m, err := pglogrepl.Parse(x.WALData)
	if u, ok := m.(*pglogrepl.UpdateMessage); ok {
		return nc.Publish(prefix+string(u.NewTuple.Columns[0].Data), u.NewTuple.Columns[2].Data)
	}
	return err
}
