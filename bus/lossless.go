//go:build !mailbell_lossy

package bus

// dropped reports whether the event at an offset is lost on the way: never. See lossy.go.
func dropped(int64) bool { return false }
