package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// readerCommand makes this program the bare reader of item 6. Its arguments are
// the DATABASE_URL, the publication, and the number of rows to read. The name of its
// slot is that of the publication with _bare.
const readerCommand = "wal-reader"

// runReader reads the rows and prints a phase.
func runReader(args []string) error {
	if len(args) != 3 {
		return errors.New("usage: wal-reader URL PUBLICATION ROWS")
	}
	rows, err := strconv.Atoi(args[2])
	if err != nil {
		return fmt.Errorf("wal-reader: %w", err)
	}
	ctx := context.Background()
	conn, err := connectReplication(ctx, args[0])
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	plugin := []string{"proto_version '1'", "publication_names '" + args[1] + "'", "messages 'true'"}
	if err := pglogrepl.StartReplication(ctx, conn, args[1]+"_bare", 0, pglogrepl.StartReplicationOptions{PluginArgs: plugin}); err != nil {
		return err
	}
	ph, err := readWAL(ctx, conn, rows)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(ph)
}

// connectReplication opens a replication connection.
func connectReplication(ctx context.Context, dsn string) (*pgconn.PgConn, error) {
	cfg, err := pgconn.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	cfg.RuntimeParams["replication"] = "database"
	return pgconn.ConnectConfig(ctx, cfg)
}

// answerKeepalive answers a keep-alive if Postgres asks for that, without confirming
// anything.
func answerKeepalive(ctx context.Context, conn *pgconn.PgConn, data []byte) error {
	k, err := pglogrepl.ParsePrimaryKeepaliveMessage(data[1:])
	if err == nil && k.ReplyRequested {
		err = pglogrepl.SendStandbyStatusUpdate(ctx, conn, pglogrepl.StandbyStatusUpdate{WALWritePosition: 1})
	}
	return err
}

// readWAL receives and parses messages until it has seen this number of rows.
func readWAL(ctx context.Context, conn *pgconn.PgConn, rows int) (phase, error) {
	warm, seen := rows/walWarmUp, 0
	var begun time.Time
	for seen < rows {
		msg, err := conn.ReceiveMessage(ctx)
		if err != nil {
			return phase{}, err
		}
		switch msg := msg.(type) {
		case *pgproto3.ErrorResponse:
			return phase{}, pgconn.ErrorResponseToPgError(msg)
		case *pgproto3.CopyData:
			row, err := parseWAL(ctx, conn, msg.Data)
			if err != nil {
				return phase{}, err
			}
			if !row {
				continue
			}
			if seen++; seen == warm {
				begun = time.Now()
			}
		}
	}
	took := time.Since(begun)
	cpu, err := readStat(os.Getpid())
	return phase{Rows: rows - warm, Seconds: took.Seconds(), Publisher: cpu.own.Seconds()}, err
}

// parseWAL says whether the message was a row. It answers keep-alives.
func parseWAL(ctx context.Context, conn *pgconn.PgConn, data []byte) (row bool, err error) {
	if data[0] == pglogrepl.PrimaryKeepaliveMessageByteID {
		return false, answerKeepalive(ctx, conn, data)
	}
	x, err := pglogrepl.ParseXLogData(data[1:])
	if err != nil {
		return false, err
	}
	msg, err := pglogrepl.Parse(x.WALData)
	_, row = msg.(*pglogrepl.InsertMessage)
	return row, err
}
