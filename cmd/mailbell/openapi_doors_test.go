package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/mailbell/mailbell/schema"
)

// Doors of programs that are no part of a site: what benches measure against.
const benchFolder = "../../bench"

// Patterns that are no doors of their own: files of a page, what leads to one, and what only hands on to doors below.
var noDoors = map[string]bool{"/": true, "/demo/{file}": true, "/fleet/": true}

// TestOpenAPIHasEveryDoor reads every pattern that the code gives to a mux, and looks for it on the page.
func TestOpenAPIHasEveryDoor(t *testing.T) {
	doc, err := openapi3.NewLoader().LoadFromFile("../../docs/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	doors := doorsOf(t)
	doors[schema.SocketPath] = "notifier"
	if len(doors) < 15 {
		t.Errorf("only %d doors were found: %v", len(doors), doors)
	}
	for path, where := range doors {
		if doc.Paths.Value(path) == nil && !noDoors[path] {
			t.Errorf("docs/openapi.yaml lacks %s of %s", path, where)
		}
	}
}

// doorsOf returns the paths that some code hands to Handle or HandleFunc, and where.
func doorsOf(t *testing.T) map[string]string {
	t.Helper()
	var files []*ast.File
	fset := token.NewFileSet()
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() && (path == benchFolder || d.Name() == "node_modules" || d.Name() == "testdata" || d.Name() == "check") {
			return filepath.SkipDir
		}
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
		files = append(files, file)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	c := constants{}
	for _, file := range files {
		c.collect(file)
	}
	doors := map[string]string{}
	for _, file := range files {
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) != 2 {
				return true
			}
			if f, ok := call.Fun.(*ast.SelectorExpr); !ok || f.Sel.Name != "Handle" && f.Sel.Name != "HandleFunc" {
				return true
			}
			pattern, ok := c.value(file.Name.Name, call.Args[0])
			if !ok {
				return true // a function that hands on what it is given
			}
			_, path, found := strings.Cut(pattern, " ")
			if !found {
				path = pattern
			}
			doors[strings.TrimSuffix(path, "{$}")] = fset.Position(call.Pos()).String()
			return true
		})
	}
	return doors
}

// constants are the texts of all packages, by package and name.
type constants map[string]ast.Expr

func (c constants) collect(file *ast.File) {
	for _, decl := range file.Decls {
		gen, ok := decl.(*ast.GenDecl)
		if !ok || gen.Tok != token.CONST {
			continue
		}
		for _, spec := range gen.Specs {
			v := spec.(*ast.ValueSpec)
			for i := range v.Values {
				c[file.Name.Name+"."+v.Names[i].Name] = v.Values[i]
			}
		}
	}
}

// value computes a constant text as a package sees it.
func (c constants) value(pkg string, e ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		s, err := strconv.Unquote(e.Value)
		return s, err == nil
	case *ast.BinaryExpr:
		left, ok := c.value(pkg, e.X)
		right, ok2 := c.value(pkg, e.Y)
		return left + right, ok && ok2 && e.Op == token.ADD
	case *ast.Ident:
		known := c[pkg+"."+e.Name]
		return c.value(pkg, known)
	case *ast.SelectorExpr:
		if of, ok := e.X.(*ast.Ident); ok {
			return c.value(of.Name, c[of.Name+"."+e.Sel.Name])
		}
	}
	return "", false
}
