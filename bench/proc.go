package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// tick is the unit of CPU times in /proc. It is the same on every Linux on which Go
// runs.
const tick = 10 * time.Millisecond

// stat is what /proc/PID/stat says: the CPU time of the process itself, and of its
// children that have ended and were waited for.
type stat struct{ own, reaped time.Duration }

func readStat(pid int) (stat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, fmt.Errorf("read CPU time: %w", err)
	}
	// The name, in parentheses, may contain anything.
	_, rest, ok := strings.Cut(string(b), ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 15 {
		return stat{}, fmt.Errorf("read CPU time of process %d: unexpected %q", pid, b)
	}
	var n [4]int64
	for i := range n { // utime, stime, cutime, cstime: fields 14 to 17, counted from 1
		if n[i], err = strconv.ParseInt(fields[11+i], 10, 64); err != nil {
			return stat{}, fmt.Errorf("read CPU time of process %d: %w", pid, err)
		}
	}
	return stat{own: time.Duration(n[0]+n[1]) * tick, reaped: time.Duration(n[2]+n[3]) * tick}, nil
}

// treeCPU returns the CPU time of a process and of all children it ever had. That
// is all of Postgres, because backends do not fork.
func treeCPU(pid int) (time.Duration, error) {
	s, err := readStat(pid)
	if err != nil {
		return 0, err
	}
	total := s.own + s.reaped
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return 0, err
	}
	for _, file := range tasks {
		b, err := os.ReadFile(file)
		if err != nil {
			return 0, err
		}
		for text := range strings.FieldsSeq(string(b)) {
			child, err := strconv.Atoi(text)
			if err != nil {
				return 0, err
			}
			cs, err := readStat(child)
			if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
				continue // the child has ended meanwhile
			}
			if err != nil {
				return 0, err
			}
			total += cs.own
		}
	}
	return total, nil
}

// machineCPU returns the CPU time that was used since the machine started: by all
// processes, by the kernel, and by other machines of the same host (steal).
func machineCPU() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("read the machine's CPU time: %w", err)
	}
	first, _, _ := strings.Cut(string(b), "\n")
	fields := strings.Fields(first)
	if len(fields) < 9 || fields[0] != "cpu" {
		return 0, fmt.Errorf("read the machine's CPU time: unexpected %q", first)
	}
	var busy int64
	for _, i := range []int{1, 2, 3, 6, 7, 8} { // user, nice, system, irq, softirq, steal
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read the machine's CPU time: %w", err)
		}
		busy += n
	}
	return time.Duration(busy) * tick, nil
}

// others is a meter's name for all other CPU time: the kernel's own work, this
// program, and everything that disturbs the measurement.
const others = "others"

// meter measures the CPU time of processes, each under a name.
type meter struct {
	pids    map[string]int
	begun   map[string]time.Duration
	machine time.Duration
	since   time.Time
}

// newMeter returns a meter that has begun to measure.
func newMeter(t testing.TB, pids map[string]int) *meter {
	t.Helper()
	m := &meter{pids: pids}
	m.reset(t)
	return m
}

func (m *meter) reset(t testing.TB) {
	t.Helper()
	m.begun, m.since = m.read(t), time.Now()
	var err error
	if m.machine, err = machineCPU(); err != nil {
		t.Fatal(err)
	}
}

func (m *meter) read(t testing.TB) map[string]time.Duration {
	t.Helper()
	times := make(map[string]time.Duration, len(m.pids))
	for name, pid := range m.pids {
		cpu, err := treeCPU(pid)
		if err != nil {
			t.Fatal(err)
		}
		times[name] = cpu
	}
	return times
}

// seconds returns the CPU seconds of each process, and of others, since the last
// reset.
func (m *meter) seconds(t testing.TB) map[string]float64 {
	t.Helper()
	used := make(map[string]float64, len(m.pids)+1)
	machine, err := machineCPU()
	if err != nil {
		t.Fatal(err)
	}
	used[others] = (machine - m.machine).Seconds()
	for name, cpu := range m.read(t) {
		used[name] = (cpu - m.begun[name]).Seconds()
		used[others] -= used[name]
	}
	return used
}
