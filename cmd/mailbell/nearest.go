package main

import "fmt"

// nearest returns the candidate with the smallest edit distance to name, the
// first of them on a tie, "" when none is near enough to be meant: a third of
// the longer name may differ.
func nearest(name string, candidates []string) string {
	best, bestDistance := "", -1
	for _, c := range candidates {
		d := editDistance(name, c)
		if 3*d <= max(len(name), len(c))+2 && (bestDistance < 0 || d < bestDistance) {
			best, bestDistance = c, d
		}
	}
	return best
}

// orNearest is what follows "unknown …": the nearest candidate as format shows
// it, or nothing.
func orNearest(name string, candidates []string, format string) string {
	if near := nearest(name, candidates); near != "" {
		return fmt.Sprintf(": the nearest known one is "+format, near)
	}
	return ""
}

// editDistance is Levenshtein's: the single-byte insertions, deletions and
// replacements that turn a into b.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := diagonal
			if a[i-1] != b[j-1] {
				cost++
			}
			diagonal = row[j]
			row[j] = min(cost, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}
