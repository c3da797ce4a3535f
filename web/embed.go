// Package web holds what a browser gets: the client, mailbell.js, and the demo page. There is no
// build step; the files in this folder are the files that are served.
package web

import "embed"

// Files has mailbell.js at its root and the demo page under demo/page. It is read-only.
//
//go:embed mailbell.js demo/page
var Files embed.FS
