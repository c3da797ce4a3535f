package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/schema"
	"github.com/spf13/cobra"
)

const tokenLong = `Print a JWT with which a client may listen to accounts, for trying things out.
Your identity provider makes the real ones.

The key is an HS256 secret or a PEM private key. Without --key, the one that
"mailbell run" made in --data is used.`

// tokenFlags are the settings of `mailbell token`.
type tokenFlags struct {
	account  string
	accounts []string
	ttl      time.Duration
	key      string
	data     string
	issuer   string
	audience string
	keyID    string
}

func newTokenCommand(t terminal) *cobra.Command {
	var f tokenFlags
	cmd := &cobra.Command{
		Use:   "token --account ACCOUNT",
		Short: "Print a JWT, for trying things out",
		Long:  tokenLong,
		Example: `  mailbell token --account alice@example.com
  mailbell token --account alice@example.com --accounts team@example.com --ttl 8h --key jwt.pem`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			token, err := f.mint(cmd)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(t.out, token)
			return err
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&f.account, "account", "", "the user: whose mail may be heard")
	fs.StringSliceVar(&f.accounts, "accounts", nil, "further `accounts` that may be heard, with commas")
	fs.DurationVar(&f.ttl, "ttl", auth.DefaultTokenTTL, "`time` that the token is good for")
	fs.StringVar(&f.key, "key", "", "`file` to sign with: an HS256 secret, or a PEM private key")
	fs.StringVar(&f.issuer, "jwt-issuer", "", "the token's `iss`")
	fs.StringVar(&f.audience, "jwt-audience", "", "the token's `aud`")
	fs.StringVar(&f.keyID, "kid", "", "the key's `id`, where the keys are a JWKS with several")
	dataFlag(fs, &f.data)
	cmd.AddCommand(newServiceTokenCommand(t))
	return cmd
}

func (f *tokenFlags) mint(cmd *cobra.Command) (string, error) {
	if f.account == "" {
		return "", wrong(cmd, "--account is missing: whose mail may be heard? For example --account alice@example.com")
	}
	if f.ttl <= 0 {
		return "", wrong(cmd, "--ttl %v: must be positive, such as 1h", f.ttl)
	}
	key := f.key
	if key == "" {
		var err error
		if key, err = madeByRun(f.data, "--key", func(d auth.Dev) string { return d.PrivateKeyFile }); err != nil {
			return "", err
		}
	}
	claims := auth.Claims{Account: schema.Account(f.account), TTL: f.ttl, Issuer: f.issuer, Audience: f.audience, KeyID: f.keyID}
	for _, account := range f.accounts {
		claims.Accounts = append(claims.Accounts, auth.Grant{Account: schema.Account(account)})
	}
	return auth.MintToken(key, claims)
}

// madeByRun returns one of the things that `mailbell run` keeps in its data
// folder, without making anything there.
func madeByRun(data, flag string, pick func(auth.Dev) string) (string, error) {
	if _, err := os.Stat(keysDir(data)); err != nil {
		return "", fmt.Errorf("%s is missing, and %s has no keys of `mailbell run`: give %s, or the folder of a running one with --data", flag, data, flag)
	}
	dev, err := auth.DevKeys(keysDir(data))
	if err != nil {
		return "", err
	}
	return pick(dev), nil
}

const serviceTokenLong = `Make a service token: for a mail store that publishes events, or for a webmail's
server that asks for tickets on behalf of its users.

The token is printed once, for the program that will use it. Only its hash goes
into the file of --file, which is what --service-tokens of adapter and bus reads;
they notice a changed file by themselves.`

func newServiceTokenCommand(t terminal) *cobra.Command {
	var name, file string
	var scopes []string
	cmd := &cobra.Command{
		Use:   "service --name NAME --scopes SCOPES",
		Short: "Make a token for a program: publish, connect",
		Long:  serviceTokenLong,
		Example: `  mailbell token service --name dovecot --scopes publish --file service-tokens
  mailbell token service --name webmail --scopes connect --file service-tokens`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return makeServiceToken(cmd, t, name, scopes, file)
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "who will use it, as it shows in logs and metrics")
	cmd.Flags().StringSliceVar(&scopes, "scopes", nil, "what it is good for: publish, connect, or both")
	cmd.Flags().StringVar(&file, "file", "", "append the line to this `file` (default: print it on stderr)")
	return cmd
}

func makeServiceToken(cmd *cobra.Command, t terminal, name string, scopes []string, file string) error {
	if name == "" || len(scopes) == 0 {
		return wrong(cmd, "--name and --scopes are needed, such as --name dovecot --scopes publish")
	}
	wanted := make([]auth.Scope, len(scopes))
	for i, s := range scopes {
		wanted[i] = auth.Scope(strings.TrimSpace(s))
	}
	plain, line, err := auth.NewServiceToken(name, wanted...)
	if err != nil {
		return wrong(cmd, "%w", err)
	}
	if file == "" {
		fmt.Fprintf(t.err, "For the file of --service-tokens:\n%s\n", line)
	} else if err := appendLine(file, line); err != nil {
		return fmt.Errorf("service token: %w", err)
	}
	_, err = fmt.Fprintln(t.out, plain)
	return err
}

func appendLine(path, line string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.WriteString(line + "\n"); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}
