package doctor

import "bridge/internal/relation"

// VersionProblems returns the problems of a server's version.
func VersionProblems(version int, text string, specs relation.Specs) []Problem {
	r := &run{cfg: Config{Specs: specs}}
	r.version(version, text)
	return r.Problems
}
