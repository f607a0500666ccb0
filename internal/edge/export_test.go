package edge

// Statuses returns the table from code to status.
func Statuses() map[Code]int { return statuses }

// DrainWrite is drainWrite.
const DrainWrite = drainWrite
