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

// NewForm returns a form without coding.
func NewForm(flat, chunked bool) Form { return form{flat: flat, chunked: chunked} }

// Accepted returns the name of the coding that the values of Accept-Encoding ask for, "" for none.
func Accepted(values ...string) string {
	if c := accepted(values); c != nil {
		return c.name()
	}
	return ""
}
