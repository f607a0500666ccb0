package relation

// Hooks for tests that need no server.

// OneLine is onOneLine.
var OneLine = onOneLine

// ParseTxid and IsDeleted parse values in text form.
func ParseTxid(text string) (uint64, error) { return parseTxid([]byte(text)) }
func IsDeleted(value []byte) bool           { return isDeleted(value) }
