package dovecotproc

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"text/template"
)

// configTemplate is the whole configuration. Its push notifications are what
// deploy/dovecot/mailbell.conf tells people to paste.
var configTemplate = template.Must(template.New("dovecot.conf").Parse(`
base_dir = {{.Dir}}/run
state_dir = {{.Dir}}/run
log_path = {{.Dir}}/log
listen = 127.0.0.1
protocols = imap lmtp
lmtp_save_to_detail_mailbox = yes
lda_mailbox_autocreate = yes
ssl = no
disable_plaintext_auth = no
auth_mechanisms = plain
mail_home = {{.Dir}}/mail/%u
mail_location = sdbox:~/sdbox
mail_uid = {{.User}}
mail_gid = {{.Group}}
first_valid_uid = 1
first_valid_gid = 1
mail_attribute_dict = file:%h/dovecot-attributes
{{- if not .Root}}
default_internal_user = {{.User}}
default_internal_group = {{.Group}}
default_login_user = {{.User}}
{{- end}}
passdb {
  driver = static
  args = password={{.Password}}
}
userdb {
  driver = static
  args = uid={{.User}} gid={{.Group}} home={{.Dir}}/mail/%u
}
namespace inbox {
  inbox = yes
  separator = /
}
{{- if .Options.Shared}}
namespace shared {
  type = shared
  separator = /
  prefix = shared/%%u/
  location = sdbox:{{.Dir}}/mail/%%u/sdbox
  subscriptions = no
  list = children
}
{{- end}}
{{- if .Include}}
!include {{.Include}}
{{- end}}
mail_plugins = $mail_plugins{{if .Options.Shared}} acl{{end}}{{if .Drivers}} notify push_notification{{end}}{{if .Lua}} mail_lua push_notification_lua{{end}}
protocol imap {
  imap_metadata = yes
  mail_plugins = $mail_plugins{{if .Options.Shared}} imap_acl{{end}}
}
plugin {
{{- range $i, $driver := .Drivers}}
  push_notification_driver{{if $i}}{{.Number}}{{end}} = {{.Value}}
{{- end}}
{{- range .Plugin}}
  {{.}}
{{- end}}
}
service imap-login {
  chroot =
  inet_listener imap {
    port = {{.IMAPPort}}
  }
  inet_listener imaps {
    port = 0
  }
}
service anvil {
  chroot =
{{- if .Options.IMAPProcesses}}
  client_limit = {{.Clients}}
}
service auth {
  client_limit = {{.Clients}}
}
service imap {
  process_limit = {{.Options.IMAPProcesses}}
{{- end}}
}
service lmtp {
  inet_listener lmtp {
    port = {{.LMTPPort}}
  }
}
`))

// otherClients is how many processes beside IMAP's ask anvil and auth at once.
const otherClients = 1000

// driver is one push notification driver; the first has no number, the second has 2.
type driver struct {
	Number int
	Value  string
}

func (s *Server) config(opts Options) (string, error) {
	name, group, root, err := owner()
	if err != nil {
		return "", err
	}
	var drivers []driver
	plugin := map[string]string{}
	include := ""
	if opts.Conf != "" {
		include = s.confPath()
	}
	lua := opts.AgentURL != "" && include == ""
	if lua {
		drivers = append(drivers, driver{1, "lua:file=" + s.scriptPath()})
		plugin["mailbell_url"] = opts.AgentURL + "/dovecot/v1/events"
		if opts.Token != "" {
			plugin["mailbell_token"] = opts.Token
		}
	}
	if opts.OXURL != "" {
		drivers = append(drivers, driver{len(drivers) + 1, "ox:url=" + opts.OXURL + " cache_lifetime=0 max_retries=0 timeout_msecs=1000"})
	}
	if opts.Shared {
		plugin["acl"] = "vfile"
	}
	maps.Copy(plugin, opts.Plugin)
	var settings []string
	for _, key := range slices.Sorted(maps.Keys(plugin)) {
		settings = append(settings, key+" = "+plugin[key])
	}
	_, imapPort, err := net.SplitHostPort(s.imapAddr)
	if err != nil {
		return "", err
	}
	_, lmtpPort, err := net.SplitHostPort(s.lmtpAddr)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	if err := configTemplate.Execute(&b, map[string]any{
		"Dir": s.dir, "User": name, "Group": group, "Root": root, "Password": Password,
		"Clients": opts.IMAPProcesses + otherClients, "Include": include, "Lua": lua, "Options": opts, "Drivers": drivers, "Plugin": settings, "IMAPPort": imapPort, "LMTPPort": lmtpPort,
	}); err != nil {
		return "", fmt.Errorf("write configuration: %w", err)
	}
	return b.String(), nil
}
