package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"sort"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// envPrefix begins the name of every environment variable that mailbell reads.
// One that begins so and means nothing is an error: it is a spelling mistake.
const envPrefix = "MAILBELL_"

// serviceLink matches the variables that Kubernetes sets by itself for a Service
// whose name begins with mailbell (MAILBELL_BUS_SERVICE_HOST, MAILBELL_PORT_7481_TCP):
// not ours, and no mistake.
var serviceLink = regexp.MustCompile(`^MAILBELL_(\w+_)?(SERVICE_(HOST|PORT)(_\w+)?|PORT(_\d+_(TCP|UDP)(_\w+)?)?)$`)

// otherVariables are read by other parts of the project: where deploy/kafka keeps
// what it has fetched.
var otherVariables = []string{"MAILBELL_CACHE"}

// notSettings are flags that are neither YAML keys nor variables.
var notSettings = []string{"help", "version"}

// applySettings fills the flags of cmd that were not given on the command line:
// first from the environment, then from the file that --config names. A key
// that belongs to another command is let through, so that one file can serve
// all processes of a site; a key that belongs to none is an error.
func applySettings(cmd *cobra.Command, environ []string) error {
	known := settingsOf(cmd.Root())
	env, err := environment(environ, known)
	if err != nil {
		return err
	}
	path, _ := cmd.Flags().GetString("config")
	if fromEnv, ok := env["config"]; ok && !cmd.Flags().Changed("config") {
		path = fromEnv
	}
	var file map[string]fileValue
	if path != "" {
		if file, err = readConfigFile(path, known); err != nil {
			return err
		}
	}
	var errs []error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Changed || isNoSetting(f.Name) {
			return
		}
		if v, ok := env[f.Name]; ok {
			if err := cmd.Flags().Set(f.Name, v); err != nil {
				errs = append(errs, fmt.Errorf("environment: %s=%q: %s (%s)", envName(f.Name), v, shortProblem(err), wants(f)))
			}
			return
		}
		if v, ok := file[f.Name]; ok {
			if err := cmd.Flags().Set(f.Name, v.text); err != nil {
				errs = append(errs, fmt.Errorf("config %s: line %d: %s: %s (%s)", path, v.line, f.Name, shortProblem(err), wants(f)))
			}
		}
	})
	return errors.Join(errs...)
}

// settingsOf collects the names of all flags below root, sorted.
func settingsOf(root *cobra.Command) []string {
	seen := map[string]bool{}
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if !isNoSetting(f.Name) {
				seen[f.Name] = true
			}
		})
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
	root.PersistentFlags().VisitAll(func(f *pflag.Flag) { seen[f.Name] = true })
	names := make([]string, 0, len(seen))
	for name := range seen {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

func isNoSetting(name string) bool { return slices.Contains(notSettings, name) }

// envName is the variable of a flag: --public-url is MAILBELL_PUBLIC_URL.
func envName(flag string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// environment picks mailbell's variables out of environ, by flag name.
func environment(environ, known []string) (map[string]string, error) {
	flagOf := make(map[string]string, len(known))
	names := make([]string, 0, len(known))
	for _, name := range known {
		flagOf[envName(name)] = name
		names = append(names, strings.TrimPrefix(envName(name), envPrefix))
	}
	values := map[string]string{}
	var errs []error
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, envPrefix) {
			continue
		}
		flag, ok := flagOf[name]
		if !ok && (serviceLink.MatchString(name) || slices.Contains(otherVariables, name)) {
			continue
		}
		if !ok {
			errs = append(errs, fmt.Errorf("environment: unknown variable %s%s", name, orNearest(strings.TrimPrefix(name, envPrefix), names, envPrefix+"%s")))
			continue
		}
		values[flag] = value
	}
	return values, errors.Join(errs...)
}

// fileValue is one key's value of a config file, as a flag would take it.
type fileValue struct {
	text string
	line int
}

// readConfigFile reads a flat YAML mapping. Lists are joined with commas.
func readConfigFile(path string, known []string) (map[string]fileValue, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("config %s: no such file: create it, or leave --config out", path)
	} else if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	values, err := parseConfig(data, known)
	if err != nil {
		return nil, fmt.Errorf("config %s: %w", path, err)
	}
	return values, nil
}

func parseConfig(data []byte, known []string) (map[string]fileValue, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, fmt.Errorf("not YAML: %s", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if len(doc.Content) == 0 {
		return nil, nil // empty, or comments only
	}
	top := doc.Content[0]
	if top.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("line %d: want lines of the form `key: value`, such as `topic: mail-events`", top.Line)
	}
	values := map[string]fileValue{}
	var errs []error
	for i := 0; i+1 < len(top.Content); i += 2 {
		key, value := top.Content[i], top.Content[i+1]
		text, err := configValue(key, value, known)
		if _, twice := values[key.Value]; twice && err == nil {
			err = fmt.Errorf("line %d: %q is given twice: keep one", key.Line, key.Value)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		values[key.Value] = fileValue{text: text, line: key.Line}
	}
	return values, errors.Join(errs...)
}

func configValue(key, value *yaml.Node, known []string) (string, error) {
	if key.Value == "config" {
		return "", fmt.Errorf("line %d: a config file cannot name another one: remove %q", key.Line, key.Value)
	}
	if !slices.Contains(known, key.Value) {
		return "", fmt.Errorf("line %d: unknown key %q%s", key.Line, key.Value, orNearest(key.Value, known, "%q"))
	}
	if value.Kind == yaml.AliasNode {
		value = value.Alias
	}
	switch value.Kind {
	case yaml.ScalarNode:
		if value.Tag == "!!null" {
			return "", fmt.Errorf("line %d: %q has no value: give it one, or remove the line", key.Line, key.Value)
		}
		return value.Value, nil
	case yaml.SequenceNode:
		parts := make([]string, 0, len(value.Content))
		for _, item := range value.Content {
			if item.Kind != yaml.ScalarNode {
				return "", fmt.Errorf("line %d: %q: want a list of plain values", item.Line, key.Value)
			}
			parts = append(parts, item.Value)
		}
		return strings.Join(parts, ","), nil
	}
	return "", fmt.Errorf("line %d: %q: want a value or a list, not a block of keys", key.Line, key.Value)
}

// shortProblem cuts what strconv and pflag put around the reason.
func shortProblem(err error) string {
	msg := err.Error()
	if i := strings.LastIndex(msg, ": "); i >= 0 && strings.Contains(msg, "invalid argument") {
		return msg[i+2:]
	}
	return msg
}

// wants says by example what a flag of this type takes.
func wants(f *pflag.Flag) string {
	switch f.Value.Type() {
	case "duration":
		return "want a time with its unit, such as 30s, 5m or 1h"
	case "bool":
		return "want true or false"
	case "int", "int64", "uint64", "int32", "uint32":
		return "want a whole number, such as 16"
	case "float64":
		return "want a number, such as 0.5"
	}
	return "want " + f.Usage
}
