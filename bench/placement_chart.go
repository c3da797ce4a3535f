package bench

import (
	"bytes"
	"fmt"
	"math"
)

// Chart draws the imbalance of each policy over the scenes as an SVG: a row a policy, the higher the more uneven.
func (r PlacementResult) Chart() []byte {
	const (
		left, top, row, width = 190, 56, 44, 640
		highest               = 1.5 // what is beyond is cut off
	)
	var b bytes.Buffer
	height := top + row*len(r.Policies) + 16
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13">`+"\n", left+width+110, height)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="#fff"/><text x="16" y="22" font-size="15" font-weight="bold">Fullest notifier over the mean, %d connections on %d notifiers</text>`+"\n", r.Connections, r.Nodes)
	for i, p := range r.Policies {
		y := float64(top + row*i)
		samples := 0
		for _, s := range p.Scenes {
			samples += len(s.Curve)
		}
		weight := ""
		if p.Name == r.Default {
			weight = ` font-weight="bold"`
		}
		fmt.Fprintf(&b, `<text x="16" y="%.0f"%s>%s</text>`, y+24, weight, p.Name)
		fmt.Fprintf(&b, `<line x1="%d" y1="%.0f" x2="%d" y2="%.0f" stroke="#ccc"/>`, left, y+row-8, left+width, y+row-8)
		x, step := float64(left), float64(width)/float64(max(1, samples))
		for _, s := range p.Scenes {
			fmt.Fprintf(&b, `<line x1="%.1f" y1="%.0f" x2="%.1f" y2="%.0f" stroke="#eee"/>`, x, y, x, y+row-8)
			fmt.Fprintf(&b, `<text x="%.1f" y="%.0f" font-size="9" fill="#999">%s</text>`, x+2, y+8, s.Name)
			fmt.Fprint(&b, `<polyline fill="none" stroke="#1668b8" stroke-width="1.5" points="`)
			for _, v := range s.Curve {
				fmt.Fprintf(&b, "%.1f,%.1f ", x, y+row-8-(math.Min(v, highest)-1)/(highest-1)*(row-10))
				x += step
			}
			fmt.Fprint(&b, `"/>`)
		}
		fmt.Fprintf(&b, `<text x="%d" y="%.0f">%.3f</text>`+"\n", left+width+12, y+24, p.Imbalance)
	}
	fmt.Fprintf(&b, `<text x="%d" y="40" font-size="11" fill="#666">the line is at 1.0, the top at %.1f; time runs to the right, each row to its own end; at the right the worst end of a scene</text>`+"\n</svg>\n", left, highest)
	return b.Bytes()
}
