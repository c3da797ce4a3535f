// Package kafka holds the files that fetch Apache Kafka, so that a program can do it without the repository at hand.
package kafka

import "embed"

// Files are pom.xml, log4j2.xml and fetch.sh.
//
//go:embed pom.xml log4j2.xml fetch.sh
var Files embed.FS
