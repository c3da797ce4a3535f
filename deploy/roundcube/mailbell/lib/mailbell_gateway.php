<?php

/**
 * Asks mailbell for tickets, and leaves it alone when it is down.
 *
 * After a failure nobody on this machine asks again for a while: a file in Roundcube's temp folder says so, by its
 * time, to all PHP processes. When that while is over, one of them tries; the others go on resting until it knows.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
class mailbell_gateway
{
    /** In rests: how long pages wait at most before they ask again. */
    private const LONGEST = 5;

    /** @var string URL of /v1/connect */
    private $url;

    /** @var string service token with the scope "connect" */
    private $token;

    /** @var int seconds without a question after a failure */
    private $rest;

    /** @var string the file whose time says when it failed */
    private $mark;

    /** @var callable ($url, $headers, $body) to [status, headers, body]; throws when there is no answer in time */
    private $post;

    /** @var callable ($message) for the administrator's log; at most once in a rest */
    private $log;

    public function __construct(string $url, string $token, int $rest, string $folder, callable $post, callable $log)
    {
        $this->url   = $url;
        $this->token = $token;
        $this->rest  = max(1, $rest);
        $this->mark  = rtrim($folder, '/') . '/mailbell-' . substr(sha1($url), 0, 16);
        $this->post  = $post;
        $this->log   = $log;
    }

    /**
     * A ticket for the account's user.
     *
     * @return array what mailbell.js takes from a gateway: url, expiresIn, retryAfterMs; without url: come back later
     */
    public function ticket(string $account): array
    {
        $remaining = $this->remaining();
        if ($remaining > 0) {
            return $this->later($remaining);
        }
        try {
            [$status, $headers, $body] = ($this->post)(
                $this->url,
                ['Authorization' => 'Bearer ' . $this->token, 'Content-Type' => 'application/json'],
                json_encode(['account' => $account], JSON_THROW_ON_ERROR | JSON_UNESCAPED_SLASHES)
            );
        } catch (\Throwable $e) {
            // The HTTP client says "refused" of a time-out as well.
            return $this->failed('no answer in time');
        }
        $answer = json_decode($body, true);
        if ($status === 200 && is_array($answer) && is_string($answer['url'] ?? null)) {
            $this->worked();
            return [
                'url'          => $answer['url'],
                'expiresIn'    => (int) ($answer['expiresIn'] ?? 0),
                'retryAfterMs' => (int) ($answer['retryAfterMs'] ?? 0),
            ];
        }
        // It lives, but no notifier takes clients just now.
        if ($status === 503 && isset($headers['retry-after'])) {
            $this->worked();
            return ['retryAfterMs' => 1000 * min(60, max(1, (int) $headers['retry-after']))];
        }
        return $this->failed("HTTP $status: " . substr((string) ($answer['error']['message'] ?? $body), 0, 200));
    }

    /** Seconds for which nobody asks. The caller that gets 0 after a failure is the one who tries. */
    private function remaining(): int
    {
        clearstatcache(true, $this->mark);
        $failed = @filemtime($this->mark);
        if ($failed === false) {
            return 0;
        }
        $remaining = $failed + $this->rest - time();
        if ($remaining <= 0) {
            @touch($this->mark);
            return 0;
        }
        // A clock that was set back must not silence us for long.
        return min($remaining, $this->rest);
    }

    private function worked(): void
    {
        if (@filemtime($this->mark) !== false) {
            @unlink($this->mark);
        }
    }

    private function failed(string $why): array
    {
        // What the file says is when the failures began; its time says when the last was.
        $known = @filemtime($this->mark) !== false;
        if (!($known ? @touch($this->mark) : @file_put_contents($this->mark, (string) time()) !== false)) {
            ($this->log)("{$this->mark} can't be written, so every page waits for mailbell: make temp_dir writable");
        }
        ($this->log)("mailbell at {$this->url}: $why; not asked again for {$this->rest} s");
        return $this->later($this->rest);
    }

    /** Not everybody at the same moment, and all of them less often when it has been down for long. */
    private function later(int $seconds): array
    {
        $since = (int) @file_get_contents($this->mark);
        $down  = $since > 0 ? time() - $since : 0;
        $wait  = max($seconds, min(intdiv($down, 2), self::LONGEST * $this->rest));
        return ['retryAfterMs' => 1000 * $wait + random_int(0, 500 * $this->rest)];
    }
}
