// Package docs holds the documentation to the code: what a page names must exist.
package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A step of the tour ends with where it happens: [`file`](../file) `function`.
var tourStep = regexp.MustCompile("\\[`([^`]+)`\\]\\(\\.\\./([^)]+)\\)\\s+`([^`]+)`")

func TestTourNamesWhatExists(t *testing.T) {
	page, err := os.ReadFile("tour.md")
	if err != nil {
		t.Fatal(err)
	}
	steps := tourStep.FindAllStringSubmatch(string(page), -1)
	if len(steps) < 10 {
		t.Fatalf("the tour has %d steps: the test no longer reads them", len(steps))
	}
	for _, step := range steps {
		file, link, function := step[1], step[2], step[3]
		if file != link {
			t.Errorf("%s links to %s", file, link)
		}
		names, err := functions(filepath.Join("..", file))
		if err != nil {
			t.Errorf("step %s %s: %v", file, function, err)
			continue
		}
		if !names[function] {
			t.Errorf("%s has no function %s any more: mend the tour", file, function)
		}
	}
}

// functions lists a file's functions as the tour writes them: Name for a
// function, Type.Name for a method. For JavaScript it takes what looks like one.
func functions(path string) (map[string]bool, error) {
	src, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	if strings.HasSuffix(path, ".js") || strings.HasSuffix(path, ".lua") {
		for _, m := range scriptFunction.FindAllStringSubmatch(string(src), -1) {
			names[m[1]] = true
		}
		return names, nil
	}
	file, err := parser.ParseFile(token.NewFileSet(), path, src, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	for _, decl := range file.Decls {
		fn, ok := decl.(*ast.FuncDecl)
		if !ok {
			continue
		}
		name := fn.Name.Name
		if fn.Recv != nil {
			name = receiver(fn.Recv.List[0].Type) + "." + name
		}
		names[name] = true
	}
	return names, nil
}

var scriptFunction = regexp.MustCompile(`(?m)^[ \t]*(?:export )?(?:async )?(?:local )?(?:function )?([#\w]+)\s*\([^)\n]*\)\s*(?:\{|$)`)

func receiver(expr ast.Expr) string {
	switch e := expr.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return "?"
}

var link = regexp.MustCompile(`\]\(([^)#\s]+)(#[^)]*)?\)`)

func TestLinksLeadSomewhere(t *testing.T) {
	pages, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	pages = append(pages, "../README.md", "../CHANGELOG.md")
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s links to %s, which is not there", page, m[1])
			}
		}
	}
}

var namedTest = regexp.MustCompile("\\[`([^`]+_test\\.go)`\\]\\(\\.\\./([^)]+)\\) `(Test\\w+)`")

// TestGuaranteesAreTested: every test that guarantees.md names is there.
func TestGuaranteesAreTested(t *testing.T) {
	page, err := os.ReadFile("guarantees.md")
	if err != nil {
		t.Fatal(err)
	}
	named := namedTest.FindAllStringSubmatch(string(page), -1)
	if len(named) < 30 {
		t.Fatalf("the page names %d tests: the test no longer reads them", len(named))
	}
	for _, n := range named {
		if n[1] != n[2] {
			t.Errorf("%s links to %s", n[1], n[2])
		}
		names, err := functions(filepath.Join("..", n[1]))
		if err != nil {
			t.Error(err)
		} else if !names[n[3]] {
			t.Errorf("%s has no %s", n[1], n[3])
		}
	}
}
