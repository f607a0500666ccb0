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

// NewCoded returns a form for HTTP/2 in the coding that the value of Accept-Encoding asks for.
func NewCoded(value string) Form { return form{coding: accepted([]string{value})} }

// Accepted returns the name of the coding that the values of Accept-Encoding ask for, "" for none.
func Accepted(values ...string) string {
	if c := accepted(values); c != nil {
		return c.name()
	}
	return ""
}
