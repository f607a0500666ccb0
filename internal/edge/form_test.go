package edge_test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"bridge/internal/edge"
	"bridge/lockstep"
)

// TestForms: each form for HTTP/1.1 frames a document as one HTTP chunk, and appends to what is there. Those for HTTP/2 have no
// frames.
func TestForms(t *testing.T) {
	row := lockstep.AppendRowTail(append(lockstep.AppendRowHead(nil, 5, 4, false), `{"id":1,"data":"a"}`...))
	for _, tt := range []struct {
		name string
		flat bool
		want string
	}{
		{"lockstep", false, string(row)},
		{"flat", true, `{"updated_at":5,"deleted_at":null,"id":1,"data":"a"}` + "\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for chunked, want := range map[bool]string{true: string(frame([]byte(tt.want))), false: tt.want} {
				got, err := edge.NewForm(tt.flat, chunked).Append([]byte("before"), slices.Values([][]byte{row}))
				if want = "before" + want; err != nil || string(got) != want {
					t.Errorf("chunked %v: got %q, %v, want %q", chunked, got, err, want)
				}
			}
		})
	}
}

// TestNative: blocks keep documents in the form of HTTP/1.1, and find each one's text in it.
func TestNative(t *testing.T) {
	for _, size := range []int{1, 15, 16, 255, 256, 70_000} {
		doc := bytes.Repeat([]byte("x"), size)
		got, head := edge.Native.Frame([]byte("before"), doc)
		want, err := edge.NewForm(false, true).Append([]byte("before"), slices.Values([][]byte{doc}))
		if err != nil || !bytes.Equal(got, want) || !bytes.HasPrefix(got[len("before")+head:], doc) {
			t.Errorf("%d bytes: got %.60q, which begins after %d, %v", size, got, head, err)
		}
	}
}

func frame(doc []byte) []byte { return fmt.Appendf(nil, "%x\r\n%s\r\n", len(doc), doc) }
