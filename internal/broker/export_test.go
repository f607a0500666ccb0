package broker

// Older is the comparison that CheckServer uses: tests have no server that is too old.
func Older(got string) bool { return older(got, minServer) }
