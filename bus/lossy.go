//go:build mailbell_lossy

package bus

// dropped loses one event in a thousand. A test builds with this tag to see that the benches' ledger finds it.
func dropped(offset int64) bool { return offset%1000 == 500 }
