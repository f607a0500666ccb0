package wal

import (
	"context"
	"errors"
)

func (s *session) compare(_ context.Context, f *feed) {
	s.leave(f, errors.New("not built"))
}
