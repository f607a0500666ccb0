package main

import (
	"testing"
	"time"

	"bridge/internal/health"
	"bridge/internal/relation"
)

type status health.Status

func (s status) Status() health.Status { return health.Status(s) }

// The bridge is ready only when it knows its relations, and when all of them are live.
func TestReadiness_OnlyWhenAllRelationsAreLive(t *testing.T) {
	t.Parallel()
	o := &ops{heartbeat: time.Second}
	now := time.Now()
	o.setWaiting("starting")
	if r := o.readiness(now); r.Ready || r.Reason != "starting" {
		t.Errorf("before the relations are known: %+v, want not ready, and why", r)
	}
	live := captured{relation.Name{Schema: "public", Table: "a"}, status{State: health.StateLive, Heartbeat: now}}
	starting := captured{relation.Name{Schema: "public", Table: "b"}, status{State: health.StateStarting}}
	o.show([]captured{live, starting})
	if r := o.readiness(now); r.Ready || !r.Relations["a"].Ready || r.Relations["b"].Ready {
		t.Errorf("one relation is live, one is not: %+v", r)
	}
	o.show([]captured{live})
	if r := o.readiness(now); !r.Ready || r.Reason != "" {
		t.Errorf("all relations are live: %+v", r)
	}
}
