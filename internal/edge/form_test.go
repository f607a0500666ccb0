package edge_test

import (
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

func frame(doc []byte) []byte { return fmt.Appendf(nil, "%x\r\n%s\r\n", len(doc), doc) }
