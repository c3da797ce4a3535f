package roundcubeproc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"
)

const (
	accessLog      = "access.log"
	defaultWorkers = 4
)

var nginxTemplate = template.Must(template.New("nginx.conf").Parse(`
daemon off;
pid {{.Dir}}/nginx.pid;
worker_processes 1;
{{- if .Root}}
user www-data;
{{- end}}
events {
  worker_connections 4096;
}
http {
  include /etc/nginx/mime.types;
  default_type application/octet-stream;
  sendfile on;
  log_format json escape=json '{"at":$msec,"method":"$request_method","uri":"$request_uri","status":$status,"received":$request_length,"sent":$bytes_sent,"seconds":$request_time,"session":"$cookie_roundcube_sessid"}';
  access_log {{.Dir}}/logs/` + accessLog + ` json;
  client_body_temp_path {{.Dir}}/nginx/body;
  fastcgi_temp_path {{.Dir}}/nginx/fastcgi;
  proxy_temp_path {{.Dir}}/nginx/proxy;
  scgi_temp_path {{.Dir}}/nginx/scgi;
  uwsgi_temp_path {{.Dir}}/nginx/uwsgi;
  include {{.Dir}}/site.conf;
}
`))

var phpTemplate = template.Must(template.New("php-fpm.conf").Parse(`
[global]
error_log = {{.Dir}}/logs/php-fpm.log
log_level = warning
[www]
{{- if .Root}}
user = www-data
group = www-data
listen.owner = www-data
listen.group = www-data
{{- end}}
listen = {{.Dir}}/php.sock
pm = static
pm.max_children = {{.Workers}}
catch_workers_output = yes
php_admin_value[error_log] = {{.Dir}}/logs/php.log
php_admin_value[sys_temp_dir] = {{.Dir}}/temp
php_admin_value[upload_tmp_dir] = {{.Dir}}/temp
php_admin_flag[log_errors] = on
`))

var roundcubeTemplate = template.Must(template.New("config.inc.php").Parse(`<?php
$config = [];
$config['db_dsnw'] = 'sqlite:///{{.Dir}}/db/roundcube.db?mode=0640';
$config['imap_host'] = '{{.Options.IMAPAddr}}';
$config['smtp_host'] = '127.0.0.1:1';
$config['des_key'] = 'a key of 24 characters..';
$config['log_dir'] = '{{.Dir}}/logs/';
$config['temp_dir'] = '{{.Dir}}/temp/';
$config['language'] = 'en_US';
$config['skin'] = 'elastic';
$config['enable_spellcheck'] = false;
$config['plugins'] = [{{range .Plugins}}'{{.}}', {{end}}];
{{.Options.Config}}
`))

// writeFiles makes a Roundcube like Debian's in /var/lib/roundcube, with a configuration of its own.
func (s *Server) writeFiles(opts Options) error {
	if err := os.Chmod(s.dir, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"config", "plugins", "public_html", "db", "temp", "logs", "nginx"} {
		if err := os.Mkdir(s.path(name), 0o755); err != nil {
			return err
		}
	}
	if err := s.linkRoundcube(); err != nil {
		return err
	}
	plugins, err := s.copyPlugins(opts.Plugins)
	if err != nil {
		return err
	}
	if opts.Workers == 0 {
		opts.Workers = defaultWorkers
	}
	values := map[string]any{"Dir": s.dir, "Root": os.Getuid() == 0, "Options": opts, "Plugins": plugins, "Workers": opts.Workers}
	for name, t := range map[string]*template.Template{
		"nginx.conf": nginxTemplate, "php-fpm.conf": phpTemplate, "config/config.inc.php": roundcubeTemplate,
	} {
		var b strings.Builder
		if err := t.Execute(&b, values); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
		if err := os.WriteFile(s.path(name), []byte(b.String()), 0o644); err != nil {
			return err
		}
	}
	if err := s.writeSite(opts); err != nil {
		return err
	}
	return s.giveToPHP("db", "temp", "logs")
}

// linkRoundcube links to Debian's files. Roundcube finds its configuration and plugins beside index.php.
func (s *Server) linkRoundcube() error {
	links := map[string]string{
		"program": roundcube + "/program", "skins": roundcube + "/skins", "SQL": roundcube + "/SQL", "index.php": roundcube + "/index.php",
		"public_html/program": debian + "/public_html/program", "public_html/skins": roundcube + "/skins", "public_html/plugins": "../plugins",
	}
	found, err := filepath.Glob(roundcube + "/plugins/*")
	if err != nil {
		return err
	}
	for _, plugin := range found {
		links["plugins/"+filepath.Base(plugin)] = plugin
	}
	for name, target := range links {
		if err := os.Symlink(target, s.path(name)); err != nil {
			return err
		}
	}
	entry, err := os.ReadFile(debian + "/public_html/index.php")
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.path("public_html/index.php"), entry, 0o644); err != nil {
		return err
	}
	for _, name := range []string{"defaults.inc.php", "mimetypes.php"} {
		if err := os.Symlink("/etc/roundcube/"+name, s.path("config/"+name)); err != nil {
			return err
		}
	}
	return nil
}

// copyPlugins copies those that are folders, as `cp -rL` does, and returns all names.
func (s *Server) copyPlugins(plugins []string) ([]string, error) {
	var names []string
	for _, plugin := range plugins {
		name := filepath.Base(plugin)
		names = append(names, name)
		if name == plugin {
			continue
		}
		err := filepath.WalkDir(plugin, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(plugin, path)
			if err != nil {
				return err
			}
			target := filepath.Join(s.path("plugins"), name, rel)
			if d.IsDir() {
				return os.MkdirAll(target, 0o755)
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.WriteFile(target, text, 0o644)
		})
		if err != nil {
			return nil, fmt.Errorf("copy plugin: %w", err)
		}
	}
	return names, nil
}

// writeSite writes the site with the addresses of this machine in place of those that it ships with.
func (s *Server) writeSite(opts Options) error {
	if opts.Site == "" {
		module, err := ModuleDir()
		if err != nil {
			return err
		}
		opts.Site = filepath.Join(module, "deploy", "roundcube", "nginx", "same-origin.conf")
	}
	b, err := os.ReadFile(opts.Site)
	if err != nil {
		return fmt.Errorf("read site: %w", err)
	}
	text := string(b)
	replace := func(old, with string) {
		if !strings.Contains(text, old) {
			err = errors.Join(err, fmt.Errorf("site %s: it has no %q to replace", opts.Site, old))
		}
		text = strings.ReplaceAll(text, old, with)
	}
	text = strings.Replace(text, "listen 80;", "listen "+s.addr+";", 1)
	text = strings.Replace(text, "listen 80;", "listen "+s.bellAddr+";", 1)
	replace("root "+debian+"/", "root "+s.dir+"/")
	replace("unix:/run/php/php8.2-fpm.sock", "unix:"+s.path("php.sock"))
	if opts.Notifier != "" {
		replace("127.0.0.1:7480", opts.Notifier)
	}
	text = strings.ReplaceAll(text, "wss://bell.example.com", "ws://"+s.bellAddr)
	if err != nil {
		return err
	}
	return os.WriteFile(s.path("site.conf"), []byte(text), 0o644)
}

// giveToPHP makes folders writable for the user that PHP runs as.
func (s *Server) giveToPHP(names ...string) error {
	if os.Getuid() != 0 {
		return nil
	}
	u, err := user.Lookup("www-data")
	if err != nil {
		return err
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return err
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := os.Chown(s.path(name), uid, gid); err != nil {
			return err
		}
	}
	return nil
}

// ModuleDir finds the module's root from the folder that a test runs in.
func ModuleDir() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("roundcube: find module: %w", err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("roundcube: find module: not inside it")
		}
	}
}
