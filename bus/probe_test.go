package bus

import (
	"strings"
	"testing"
)

// Only a notifier's own 503 says that its address works.
func TestWhose503(t *testing.T) {
	for body, want := range map[string]bool{
		`{"error":{"code":"full","message":"this node holds as many connections as it may"}}`: true,
		`{"error":{"code":"draining"}}`:                              true,
		`{"error":{"code":"busy"}}`:                                  true,
		`{"error":{"code":"unavailable"}}`:                           false, // a gateway behind the same name
		"<html><body><h1>503 Service Unavailable</h1></body></html>": false,
		"": false,
	} {
		if saysBusy(strings.NewReader(body)) != want {
			t.Errorf("%q: want %t", body, want)
		}
	}
}
