package relation

// What the tests of this package's pure parts need.

// OneLine is onOneLine.
var OneLine = onOneLine

// ParseTxid and IsDeleted read values in text form.
func ParseTxid(text string) (uint64, error) { return parseTxid([]byte(text)) }
func IsDeleted(value []byte) bool           { return isDeleted(value) }
