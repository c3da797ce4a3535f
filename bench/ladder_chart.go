package bench

import (
	"fmt"
	"html"
	"strings"
)

// LadderSVG draws the memory that 3,000,000 connections take on each rung, beside the article's 72 GB.
func LadderSVG(r LadderResult) []byte {
	type bar struct {
		name, what string
		bytes      int64
		color      string
	}
	bars := []bar{{"the article", "its own figure for the first rung", r.ArticleBytesAt3Million, "#9aa3ad"}}
	for i, rung := range r.Rungs {
		color := "#4c78a8"
		if i == len(r.Rungs)-1 {
			color = "#e45756"
		}
		bars = append(bars, bar{rung.Name, rung.What, rung.BytesAt3Million, color})
	}
	for _, rival := range r.Rivals {
		bars = append(bars, bar{rival.Name, rival.What, rival.BytesAt3Million, "#b7c9dd"})
	}
	const (
		width, row, top, left, right = 860, 46, 46, 20, 130
		full                         = width - left - right
	)
	most := int64(1)
	for _, b := range bars {
		most = max(most, b.bytes)
	}
	var s strings.Builder
	height := top + row*len(bars) + 10
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="system-ui, sans-serif" font-size="13">`+"\n", width, height, width, height)
	fmt.Fprintf(&s, `<rect width="100%%" height="100%%" fill="#ffffff"/>`+"\n")
	fmt.Fprintf(&s, `<text x="%d" y="26" font-size="16" font-weight="600" fill="#1f2933">Memory of the server's process for 3,000,000 idle WebSockets</text>`+"\n", left)
	for i, b := range bars {
		y := top + i*row
		w := max(2, int(int64(full)*max(b.bytes, 0)/most))
		fmt.Fprintf(&s, `<text x="%d" y="%d" fill="#1f2933">%s <tspan fill="#66727f">%s</tspan></text>`+"\n", left, y+14, html.EscapeString(b.name), html.EscapeString(b.what))
		fmt.Fprintf(&s, `<rect x="%d" y="%d" width="%d" height="16" rx="2" fill="%s"/>`+"\n", left, y+20, w, b.color)
		fmt.Fprintf(&s, `<text x="%d" y="%d" fill="#1f2933">%s</text>`+"\n", left+w+8, y+33, gigabytes(b.bytes))
	}
	s.WriteString("</svg>\n")
	return []byte(s.String())
}

func gigabytes(b int64) string { return fmt.Sprintf("%.1f GB", float64(b)/1e9) }
