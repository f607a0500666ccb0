package edge_test

import (
	"fmt"
	"testing"

	"bridge/internal/edge"
	"bridge/lockstep"
)

// TestForms: each form frames a document as one HTTP chunk, and appends to what is there.
func TestForms(t *testing.T) {
	row := lockstep.AppendRowTail(append(lockstep.AppendRowHead(nil, 5, 4, false), `{"id":1,"data":"a"}`...))
	for _, tt := range []struct {
		name string
		form edge.Form
		want string
	}{
		{"lockstep", edge.Chunked{}, string(row)},
		{"flat", edge.FlatChunked{}, `{"updated_at":5,"deleted_at":null,"id":1,"data":"a"}` + "\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.form.Append([]byte("before"), row)
			if want := "before" + string(frame([]byte(tt.want))); err != nil || string(got) != want {
				t.Errorf("got %q, %v, want %q", got, err, want)
			}
		})
	}
}

func frame(doc []byte) []byte { return fmt.Appendf(nil, "%x\r\n%s\r\n", len(doc), doc) }
