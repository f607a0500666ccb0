package broker

// Older is what CheckServer decides by; no server that is too old can be had in a test.
func Older(got string) bool { return older(got, minServer) }
