package edge

// Statuses returns the table from code to status.
func Statuses() map[Code]int { return statuses }

// Constants for tests.
const (
	DrainWrite   = drainWrite
	DrainBatches = drainBatches
	DrainPause   = drainPause
	FewClients   = fewClients
)

// NewForm returns a form.
func NewForm(flat, chunked bool) Form { return form{flat, chunked} }
