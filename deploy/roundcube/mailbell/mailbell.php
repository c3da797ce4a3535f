<?php

/**
 * mailbell for Roundcube: the page hears of changes over a socket instead of asking every minute.
 *
 * This side gets tickets from mailbell, tells the page what it needs to know, and answers the three requests of its
 * own: a ticket, the list of folders, and the part of check-recent that the page names. The rest is in roundcube.js.
 *
 * @license Apache-2.0
 */
class mailbell extends rcube_plugin
{
    public $task = 'mail|addressbook|settings';

    /** How many folders one check-recent may name. */
    private const MAX_FOLDERS = 50;

    /** @var rcmail */
    private $rc;

    public function init()
    {
        $this->rc = rcmail::get_instance();
        $this->register_action('plugin.mailbell.ticket', [$this, 'send_ticket']);
        if ($this->rc->task === 'mail') {
            if ($this->rc->action === 'getunread' && !empty($_SESSION['mailbell_count'])) {
                $this->rc->config->set('check_all_folders', true);
                unset($_SESSION['mailbell_count']);
            }
            $this->register_action('plugin.mailbell.folders', [$this, 'send_folders']);
            $this->add_hook('check_recent', [$this, 'check_recent']);
        }
        if ($this->rc->task === 'settings') {
            $this->add_hook('preferences_list', [$this, 'preferences_list']);
            $this->add_hook('preferences_save', [$this, 'preferences_save']);
        }
        $this->add_hook('render_page', [$this, 'render_page']);
    }

    /**
     * Gives a page that would poll the client and its first ticket.
     */
    public function render_page($args)
    {
        $output = $this->rc->output;
        if (
            $output->type !== 'html' || empty($this->rc->user->ID) || $this->rc->action === 'print'
            || $output->get_env('framed') || $output->get_env('extwin')
        ) {
            return $args;
        }
        $this->load_config();
        if (!$this->live()) {
            $this->counts_are_kept(false);
            return $args;
        }
        try {
            $account = $this->account();
        } catch (InvalidArgumentException $e) {
            $this->log($e->getMessage());
            return $args;
        }
        $ticket = $this->gateway()->ticket($account);
        $this->counts_are_kept(isset($ticket['url']));
        $output->set_env('mailbell', [
            'account'      => $account,
            'ticket'       => $ticket,
            'slowRefresh'  => 60 * max(0, (int) $this->rc->config->get('mailbell_slow_refresh', 60)),
            'catchUp'      => max(0, (float) $this->rc->config->get('mailbell_catch_up', 4)),
            'checkAll'     => (bool) $this->rc->config->get('check_all_folders'),
            'foreign'      => $this->foreign_folders(),
            'notify'       => $this->notifications(),
        ]);
        $modules = json_encode([$this->module('roundcube.js'), $this->module('mailbell.js')], JSON_UNESCAPED_SLASHES);
        // A relative address, which import() wants told apart from a bare name.
        $output->add_script(
            "Promise.all($modules.map(m => import(new URL(m, document.baseURI))))"
            . '.then(([page, client]) => { rcmail.mailbell = page.start(rcmail, client); });',
            'docready'
        );
        return $args;
    }

    /**
     * Counts that came by events are not in the session. A page that will hear events restores them by itself; the
     * first one after it that comes without a ticket has them counted, once, by its getunread.
     */
    private function counts_are_kept(bool $hears): void
    {
        if ($hears) {
            $_SESSION['mailbell_heard'] = true;
            unset($_SESSION['mailbell_count']);
        } elseif (!empty($_SESSION['mailbell_heard'])) {
            unset($_SESSION['mailbell_heard']);
            $_SESSION['mailbell_count'] = true;
        }
    }

    /** Roundcube checks the request token of a POST only, and of none without a form. */
    private function only_post(): void
    {
        if (($_SERVER['REQUEST_METHOD'] ?? '') !== 'POST') {
            http_response_code(405);
            header('Allow: POST');
            exit;
        }
        if (empty($_POST)) {
            http_response_code(403);
            exit;
        }
    }

    /**
     * Answers the page that needs another ticket: for a new connection, since each is good for one.
     */
    public function send_ticket()
    {
        $this->only_post();
        $this->load_config();
        try {
            $ticket = $this->live() ? $this->gateway()->ticket($this->account()) : null;
        } catch (InvalidArgumentException $e) {
            $this->log($e->getMessage());
            $ticket = null;
        }
        $this->rc->output->set_env('mailbell_ticket', $ticket);
        $this->rc->output->send();
    }

    /**
     * Answers with the list of folders as the page has it, and the unread counts of those that it may not know.
     */
    public function send_folders()
    {
        $this->only_post();
        $storage = $this->rc->get_storage();
        $storage->clear_cache('mailboxes', true);
        $all  = (bool) rcube_utils::get_input_value('_all', rcube_utils::INPUT_POST);
        $html = rcmail_action::folder_list(['id' => 'mailboxlist', 'folder_filter' => 'mail', 'unreadwrap' => '%s']);

        $counts = [];
        foreach ($storage->list_folders_subscribed('', '*', 'mail') as $folder) {
            if ($all || rcmail_action_mail_index::get_unseen_count($folder) === null) {
                $counts[$folder] = $storage->count($folder, 'UNSEEN', true);
                rcmail_action_mail_index::set_unseen_count($folder, $counts[$folder]);
            }
        }
        header('Content-Type: application/json; charset=UTF-8');
        echo json_encode([
            'html'   => $html,
            'counts' => (object) $counts,
            'env'    => [
                'mailboxes'      => $this->rc->output->get_env('mailboxes'),
                'mailboxes_list' => $this->rc->output->get_env('mailboxes_list'),
            ],
        ], JSON_INVALID_UTF8_SUBSTITUTE);
        exit;
    }

    /**
     * Narrows check-recent to the folders that the page names; an asterisk stands for all.
     */
    public function check_recent($args)
    {
        $wanted = rcube_utils::get_input_value('_mailbell', rcube_utils::INPUT_POST);
        if ($this->rc->action !== 'check-recent' || !is_array($wanted)) {
            return $args;
        }
        $storage = $this->rc->get_storage();
        if (!in_array('*', $wanted, true)) {
            $named = array_filter($wanted, fn ($folder) => is_string($folder) && $folder !== '');
            $args['folders'] = array_slice(array_values($named), 0, self::MAX_FOLDERS);
        }
        // Roundcube compares with what the session saw last. Another tab of the same session may have seen this change
        // already, so what counts is what the page shows: it asks for a list only when it lacks something.
        $open = $storage->get_folder();
        if (!empty($_POST['_list']) && in_array($open, $args['folders'], true)) {
            $known = $_SESSION['folders'][$open]['maxuid'] ?? PHP_INT_MAX;
            $_SESSION['folders'][$open] = ['cnt' => PHP_INT_MAX, 'maxuid' => $known];
        }
        return $args;
    }

    /**
     * Adds the user's switch to Preferences, Mailbox View, New Message.
     */
    public function preferences_list($args)
    {
        if ($args['section'] !== 'mailbox' || $this->fixed()) {
            return $args;
        }
        $this->load_config();
        $this->add_texts('localization/');
        $input = new html_checkbox(['name' => '_mailbell_live', 'id' => 'mailbell_live', 'value' => 1]);
        $args['blocks']['new_message']['options']['mailbell_live'] = [
            'title'   => html::label('mailbell_live', rcube::Q($this->gettext('live'))),
            'content' => $input->show($this->live() ? 1 : 0),
        ];
        return $args;
    }

    public function preferences_save($args)
    {
        if ($args['section'] === 'mailbox' && !$this->fixed()) {
            $args['prefs']['mailbell_live'] = !empty($_POST['_mailbell_live']);
        }
        return $args;
    }

    private function fixed(): bool
    {
        return in_array('mailbell_live', (array) $this->rc->config->get('dont_override', []), true);
    }

    private function live(): bool
    {
        return (bool) $this->rc->config->get('mailbell_live', true)
            && $this->rc->config->get('mailbell_gateway') && $this->rc->config->get('mailbell_token');
    }

    private function account(): string
    {
        require_once __DIR__ . '/lib/mailbell_account.php';
        return mailbell_account::of((string) $this->rc->config->get('mailbell_account', 'login'), [
            'login' => (string) $this->rc->get_user_name(),
            'email' => (string) $this->rc->get_user_email(),
            'host'  => (string) ($_SESSION['storage_host'] ?? ''),
        ]);
    }

    private function gateway(): mailbell_gateway
    {
        require_once __DIR__ . '/lib/mailbell_gateway.php';
        $config = $this->rc->config;
        return new mailbell_gateway(
            (string) $config->get('mailbell_gateway'),
            (string) $config->get('mailbell_token'),
            (int) $config->get('mailbell_rest', 60),
            (string) $config->get('temp_dir', sys_get_temp_dir()),
            [$this, 'post'],
            [$this, 'log']
        );
    }

    /**
     * One HTTP request that ends in time.
     */
    public function post(string $url, array $headers, string $body): array
    {
        $timeout  = max(0.1, (float) $this->rc->config->get('mailbell_timeout', 1));
        $response = $this->rc->get_http_client()->post($url, [
            'headers'         => $headers,
            'body'            => $body,
            'timeout'         => $timeout,
            'connect_timeout' => $timeout,
            'read_timeout'    => $timeout,
            'allow_redirects' => false,
            'http_errors'     => false,
        ]);
        $heads = array_change_key_case(array_map('current', $response->getHeaders()));
        return [$response->getStatusCode(), $heads, (string) $response->getBody()];
    }

    public function log(string $message): void
    {
        rcube::write_log('errors', $message);
    }

    /** The address of one of our modules, which changes when the file does. */
    private function module(string $name): string
    {
        $address = $this->rc->output->asset_url($this->url($name));
        return $address . '?s=' . (int) @filemtime(slashify($this->home) . $name);
    }

    /**
     * Prefixes of folders that belong to others. Their events go to their owners' accounts, which this user does not hear.
     */
    private function foreign_folders(): array
    {
        if ($this->rc->task !== 'mail' || $this->rc->action !== '') {
            return [];
        }
        $storage = $this->rc->get_storage();
        $spaces  = array_merge((array) $storage->get_namespace('other'), (array) $storage->get_namespace('shared'));
        return array_values(array_filter(array_column($spaces, 0), 'strlen'));
    }

    /**
     * What the newmail_notifier plugin is to do when the page hears of a message, and where it is not to.
     */
    private function notifications(): ?array
    {
        $notifier = $this->rc->plugins->get_plugin('newmail_notifier');
        if (!$notifier) {
            return null;
        }
        $notifier->load_config();
        $config = $this->rc->config;
        $silent = [];
        foreach (['drafts_mbox', 'sent_mbox', 'trash_mbox', 'junk_mbox'] as $name) {
            $folder = (string) $config->get($name);
            if ($folder !== '' && $folder !== 'INBOX') {
                $silent[] = $folder;
            }
        }
        return [
            'basic'   => (bool) $config->get('newmail_notifier_basic'),
            'sound'   => (bool) $config->get('newmail_notifier_sound'),
            'desktop' => (bool) $config->get('newmail_notifier_desktop'),
            'timeout' => (int) $config->get('newmail_notifier_desktop_timeout'),
            'silent'  => $silent,
        ];
    }
}
