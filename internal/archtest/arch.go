// Package archtest holds the project's shape: which package may import which,
// and which folder owns each third-party package.
//
// Imports go one way. schema is at the bottom and imports nothing of ours;
// internal packages see only schema; storageadapter, bus and notifier see schema
// and internal and never one another; bench and cmd wire the rest. A third-party
// package stays in the folders that own it, so that replacing it touches one
// place. The package has no goroutines and reads nothing but Go files.
package archtest

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
)

// Module is the path of the module whose imports are read.
const Module = "github.com/mailbell/mailbell"

// Import is one import statement of one file.
type Import struct {
	File   string // slash path from the module's root
	Dir    string // its folder, "" for the root
	Path   string // what it imports
	InTest bool   // the file is a _test.go
}

// Rules says who may import what.
type Rules struct {
	// Ours lists, for each top folder, the prefixes of our own packages that it
	// may import beside itself. The longest matching folder wins.
	Ours map[string][]string
	// OursInTests is added to Ours for _test.go files.
	OursInTests map[string][]string
	// Forbidden is an arrow that holds even where Ours would let it through.
	Forbidden map[string][]string
	// ThirdParty lists, for each third-party prefix, the folders that own it.
	ThirdParty map[string][]string
	// ThirdPartyInTests is added to ThirdParty for _test.go files.
	ThirdPartyInTests map[string][]string
}

// anywhere in a list of folders means all of them.
const anywhere = "*"

// Imports reads every Go file below root, but not other modules, vendored
// code or testdata.
func Imports(root string) ([]Import, error) {
	var imports []Import
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if path != root && skipDir(path, d.Name()) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		found, err := fileImports(root, path)
		imports = append(imports, found...)
		return err
	})
	return imports, err
}

func skipDir(path, name string) bool {
	if strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") || name == "testdata" || name == "node_modules" {
		return true
	}
	_, err := os.Stat(filepath.Join(path, "go.mod"))
	return err == nil
}

func fileImports(root, path string) ([]Import, error) {
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
	if err != nil {
		return nil, fmt.Errorf("read imports: %w", err)
	}
	rel, err := filepath.Rel(root, path)
	if err != nil {
		return nil, err
	}
	rel = filepath.ToSlash(rel)
	dir := ""
	if i := strings.LastIndexByte(rel, '/'); i >= 0 {
		dir = rel[:i]
	}
	imports := make([]Import, 0, len(file.Imports))
	for _, spec := range file.Imports {
		name, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return nil, fmt.Errorf("read imports: %s: %w", rel, err)
		}
		imports = append(imports, Import{File: rel, Dir: dir, Path: name, InTest: strings.HasSuffix(rel, "_test.go")})
	}
	return imports, nil
}

// Check returns one line for each import that the rules do not allow, sorted.
func (r Rules) Check(imports []Import) []string {
	var bad []string
	for _, imp := range imports {
		if problem := r.problem(imp); problem != "" {
			bad = append(bad, imp.File+": "+problem)
		}
	}
	sort.Strings(bad)
	return bad
}

func (r Rules) problem(imp Import) string {
	if imp.Path == Module || within(imp.Path, Module) {
		return r.oursProblem(imp, strings.TrimPrefix(strings.TrimPrefix(imp.Path, Module), "/"))
	}
	if first, _, _ := strings.Cut(imp.Path, "/"); !strings.Contains(first, ".") {
		return "" // the standard library
	}
	owners, ok := lookup(r.ThirdParty, imp.Path)
	inTests, okInTests := lookup(r.ThirdPartyInTests, imp.Path)
	if imp.InTest {
		owners, ok = append(append([]string(nil), owners...), inTests...), ok || okInTests
	}
	if !ok {
		return fmt.Sprintf("imports %s, which no folder owns: give it an owner in internal/archtest", imp.Path)
	}
	if !anyWithin(imp.Dir, owners) {
		return fmt.Sprintf("imports %s, which belongs to %s", imp.Path, strings.Join(owners, ", "))
	}
	return ""
}

func (r Rules) oursProblem(imp Import, target string) string {
	if imp.Dir == target {
		return "" // an external test package
	}
	forbidden, _ := lookup(r.Forbidden, imp.Dir)
	if !imp.InTest && anyWithin(target, forbidden) {
		return fmt.Sprintf("%s must never import %s", imp.Dir, target)
	}
	allowed, known := lookup(r.Ours, imp.Dir)
	if !known {
		return fmt.Sprintf("folder %q has no rule: give it one in internal/archtest", imp.Dir)
	}
	if imp.InTest {
		more, _ := lookup(r.OursInTests, imp.Dir)
		allowed = append(append([]string(nil), allowed...), more...)
	}
	if !anyWithin(target, allowed) {
		return fmt.Sprintf("%s may not import %s (it may: %s)", imp.Dir, target, strings.Join(allowed, ", "))
	}
	return ""
}

// lookup finds the entry with the longest key that path is within.
func lookup(m map[string][]string, path string) ([]string, bool) {
	best, found := "", false
	for key := range m {
		if (path == key || within(path, key)) && (!found || len(key) > len(best)) {
			best, found = key, true
		}
	}
	return m[best], found
}

func within(path, folder string) bool { return strings.HasPrefix(path, folder+"/") }

func anyWithin(path string, folders []string) bool {
	for _, f := range folders {
		if f == anywhere || path == f || within(path, f) {
			return true
		}
	}
	return false
}
