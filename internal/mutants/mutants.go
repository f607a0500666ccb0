package main

// mutant is one way to break the project.
type mutant struct {
	invariant, name string
	// In file, the one place of old becomes new.
	file, old, new string
	// The test (a regular expression without anchors) of the package that
	// must fail then.
	pkg, test string
}

var mutants = []mutant{
	{
		invariant: "I6", name: "no-chained-sequence",
		file: "internal/publish/epoch.go",
		old:  `e.expected[0] = strconv.FormatUint(e.seq, 10)`,
		new:  `delete(e.row.Header, jetstream.ExpectedLastSeqHeader)`,
		pkg:  "./internal/publish", test: "TestPublish_DeposedWriterStoresNothing",
	},
	{
		invariant: "I6", name: "no-lease",
		file: "internal/publish/lease.go",
		old:  "\tcase err == nil:\n\t\treturn false, nil",
		new:  "\tcase err == nil:\n\t\treturn true, nil",
		pkg:  "./internal/publish", test: "TestPublish_StandbyTakesOver",
	},
	{
		invariant: "I6", name: "lease-not-renewed",
		file: "internal/publish/run.go",
		old:  "if err := p.lease.renew(ctx); err != nil {",
		new:  "if err := ctx.Err(); err != nil {",
		pkg:  "./internal/publish", test: "TestPublish_StandbyTakesOver",
	},
	{
		invariant: "I5", name: "high-falls",
		file: "internal/publish/epoch.go",
		old:  "if e.highText[0] == \"\" || c.High > e.high {\n\t\te.high = max(e.high, c.High)",
		new:  "if c.High != e.high {\n\t\te.high = c.High",
		pkg:  "./internal/publish", test: "TestPublish_NewIncarnation|TestPublish_ResumesFromTheStreamAlone|TestPublish_HighNeverFalls",
	},
	{
		invariant: "I7", name: "resume-one-row-late",
		file: "internal/publish/begin.go",
		old:  "for hi-lo > 1 {",
		new:  "for hi-lo > 3 {",
		pkg:  "./internal/publish", test: "TestPublish_LastRowIsFoundAnywhere",
	},
	{
		invariant: "I7", name: "batch-not-kept-open",
		file: "internal/publish/run.go",
		old:  "if time.Since(e.lastSent) > aliveAfter {",
		new:  "if time.Since(e.lastSent) > time.Hour {",
		pkg:  "./internal/publish", test: "TestPublish_QuietBatchStaysOpen",
	},
	{
		invariant: "I8", name: "floor-forgotten",
		file: "internal/publish/incarnation.go",
		old:  "meta := p.newMeta(src, t.high+1)",
		new:  "meta := p.newMeta(src, min(t.high, 0))",
		pkg:  "./internal/publish", test: "TestPublish_NewIncarnation",
	},
	{
		invariant: "I8", name: "old-rows-stay",
		file: "internal/publish/begin.go",
		old:  `if t.incarnation != "" && t.incarnation != meta.Incarnation {`,
		new:  `if t.incarnation != "" && t.incarnation == "-" {`,
		pkg:  "./internal/publish", test: "TestPublish_NewIncarnation",
	},
	{
		invariant: "I8", name: "other-source-taken-over",
		file: "internal/publish/incarnation.go",
		old:  "if meta.Source.System != src.System || meta.Source.Database != src.Database {",
		new:  "if meta.Source.System != src.System {",
		pkg:  "./internal/publish", test: "TestPublish_NewIncarnation",
	},
	{
		invariant: "I10", name: "oversize-row-sent",
		file: "internal/publish/epoch.go",
		old:  "if size > e.maxPayload {",
		new:  "if size > 10*e.maxPayload {",
		pkg:  "./internal/publish", test: "TestPublish_OversizeRow",
	},
	{
		invariant: "I3", name: "poll-by-highest-txid",
		file: "internal/poller/session.go",
		old:  "params: [][]byte{xidArray(p.Xip), xid(p.Xmax)}",
		new:  "params: [][]byte{xidArray(nil), xid(p.Xmax)}",
		pkg:  "./cmd/bridge", test: "TestBridge_OpenTransactionHoldsSinceNotRows_I3",
	},
	{
		invariant: "I1", name: "view-read-by-highest-txid",
		file: "internal/poller/batch.go",
		old:  "\tif s.rel.Kind == 'v' {\n\t\treturn atXmin(sn)\n\t}\n",
		new:  "",
		pkg:  "./cmd/bridge", test: "TestBridge_JoinMissesNoLateWrite_I1",
	},
	{
		invariant: "I2", name: "heartbeat-before-its-rows",
		file: "internal/poller/batch.go",
		old:  "\tif err := b.flush(ctx); err != nil {\n\t\treturn 0, err\n\t}\n",
		new:  "\tdefer func() { _ = b.flush(ctx) }()\n",
		pkg:  "./cmd/bridge", test: "TestBridge_LoadsThenFollows_I1|TestBridge_OpenTransactionHoldsSinceNotRows_I3",
	},
	{
		invariant: "I7", name: "interrupted-batch-forgotten",
		file: "internal/poller/session.go",
		old:  "\tif pos.Batch != nil {",
		new:  "\tif pos.Batch != nil && pos.High == 1 {",
		pkg:  "./cmd/bridge", test: "TestBridge_AnnouncedBatchKilledInItsMiddleTwice_I7",
	},
	{
		invariant: "I7", name: "txids-given-out-again-missed",
		file: "internal/poller/session.go",
		old:  "if connectionOf(conn).number > s.connects {",
		new:  "if connectionOf(conn).number < 0 {",
		pkg:  "./cmd/bridge", test: "TestBridge_PostgresGivesTxidsOutAgain_I7",
	},
	{
		invariant: "I1", name: "lost-commit-not-repaired",
		file: "internal/poller/repair.go",
		old:  "return safe.Visible(r.Txid) })",
		new:  "return safe.Visible(r.Txid) || r.Txid > 0 })",
		pkg:  "./cmd/bridge", test: "TestBridge_LostAsynchronousCommitIsRepaired_I1",
	},
	{
		invariant: "I3", name: "standby-believed-like-a-primary",
		file: "internal/poller/batch.go",
		old:  "l.taken = atXmin(l.taken)",
		new:  "_ = atXmin(l.taken)",
		pkg:  "./cmd/bridge", test: "TestBridge_StandbyLosesNoLateRow_I3",
	},
	{
		invariant: "I1", name: "changed-columns-unnoticed",
		file: "internal/poller/session.go",
		old:  "if string(pos.Schema) != string(schema) {",
		new:  "if pos.Schema == nil {",
		pkg:  "./cmd/bridge", test: "TestBridge_ChangedColumnsArePublishedAnew_I1",
	},
	{
		invariant: "I8", name: "relation-made-again-taken-over",
		file: "internal/publish/incarnation.go",
		old:  "case meta.Source.OID != src.OID:",
		new:  "case meta.Source.OID == 1:",
		pkg:  "./cmd/bridge", test: "TestBridge_DroppedRelationStopsAloneAndComesBack_I10",
	},
	{
		invariant: "I12", name: "numbers-as-strings",
		file: "internal/relation/types.go",
		old:  "case oidInt2, oidInt4, oidInt8, oidFloat4, oidFloat8, oidNumeric:",
		new:  "case oidInt2, oidInt4, oidInt8, oidFloat4, oidFloat8:",
		pkg:  "./internal/relation", test: "TestEncode_EveryType",
	},
}
