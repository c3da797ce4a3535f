<?php

/**
 * Tests of the plugin's parts that need no Roundcube: php deploy/roundcube/test/unit.php
 *
 * SPDX-License-Identifier: Apache-2.0
 */

require __DIR__ . '/../mailbell/lib/mailbell_account.php';
require __DIR__ . '/../mailbell/lib/mailbell_gateway.php';

$failures = 0;

function check(string $what, $got, $want): void
{
    global $failures;
    if ($got !== $want) {
        $failures++;
        echo "$what: got " . var_export($got, true) . ', want ' . var_export($want, true) . "\n";
    }
}

// The account rule: rule, user, account; null where it refuses.
$user  = ['login' => 'Alice@Example.com', 'email' => 'a.liddell@example.com', 'host' => 'imap.example.com'];
$plain = ['login' => 'alice', 'email' => 'alice@example.com', 'host' => 'localhost'];
$table = [
    ['login', $user, 'Alice@Example.com'],
    ['login', $plain, 'alice'],
    ['email', $user, 'a.liddell@example.com'],
    ['%u', $user, 'Alice@Example.com'],
    ['%Lu', $user, 'alice@example.com'],
    ['%n@%h', $user, 'Alice@imap.example.com'],
    ['%Ln@%Ld', $user, 'alice@example.com'],
    ['%u@example.com', $plain, 'alice@example.com'],
    ['%e', $plain, 'alice@example.com'],
    ['100%%-%u', $plain, '100%-alice'],
    ['%Lu', ['login' => 'ÄRGER@example.com'], 'ärger@example.com'],
    ['%n', ['login' => 'a@b@c'], 'a'],
    ['%d', ['login' => 'a@b@c'], 'b@c'],
    ['%d', $plain, null],
    ['email', ['login' => 'alice'], null],
    ['%x', $user, null],
    ['%Lx', $user, null],
    ['%', $user, null],
    ['', $user, null],
    ['login', ['login' => ''], null],
    ['login', ['login' => ' alice'], null],
    ['login', ['login' => "ali\nce"], null],
    ['login', ['login' => "alice\n"], null],
    ['login', ['login' => "\xff"], null],
    ['login', ['login' => str_repeat('a', 320)], str_repeat('a', 320)],
    ['login', ['login' => str_repeat('a', 321)], null],
];
foreach ($table as [$rule, $who, $want]) {
    try {
        $got = mailbell_account::of($rule, $who);
    } catch (InvalidArgumentException $e) {
        $got = null;
    }
    check("account by \"$rule\" of " . json_encode($who, JSON_INVALID_UTF8_SUBSTITUTE), $got, $want);
}

// The gateway: what it answers, and how often it is asked.
$folder = sys_get_temp_dir() . '/mailbell-unit-' . getmypid();
mkdir($folder);
$asked = [];
$logged = [];
$answer = null;
$gateway = new mailbell_gateway(
    'http://127.0.0.1:8480/v1/connect',
    'a token',
    60,
    $folder,
    function (...$request) use (&$asked, &$answer) {
        $asked[] = $request;
        if ($answer instanceof Throwable) {
            throw $answer;
        }
        return $answer;
    },
    function ($line) use (&$logged) {
        $logged[] = $line;
    }
);
$marks = fn () => glob("$folder/*");
$good  = [200, [], '{"url":"ws://n/v1/ws?ticket=x","expiresIn":30,"retryAfterMs":0}'];

$answer = $good;
check('a ticket', $gateway->ticket('alice@example.com'), ['url' => 'ws://n/v1/ws?ticket=x', 'expiresIn' => 30, 'retryAfterMs' => 0]);
check('the request', $asked, [[
    'http://127.0.0.1:8480/v1/connect',
    ['Authorization' => 'Bearer a token', 'Content-Type' => 'application/json'],
    '{"account":"alice@example.com"}',
]]);
check('no mark', $marks(), []);

foreach (
    [
        'down' => new RuntimeException('timed out'), 'wrong token' => [401, [], '{"error":{"message":"unknown token"}}'],
        'not mailbell' => [200, [], '<html>'], 'broken' => [500, [], ''], 'no url' => [200, [], '{"url":7}'],
    ] as $what => $answer
) {
    array_map('unlink', $marks());
    $asked = $logged = [];
    for ($i = 0; $i < 3; $i++) {
        $ticket = $gateway->ticket('alice@example.com');
        check("$what: no url", isset($ticket['url']), false);
        $wait = $ticket['retryAfterMs'];
        check("$what: back after a minute to a minute and a half, not $wait", $wait >= 58000 && $wait <= 90000, true);
    }
    check("$what: asked once", count($asked), 1);
    check("$what: logged once", count($logged), 1);
}

// The minute is over: one asks, and when it works the mark is gone.
touch($marks()[0], time() - 61);
$asked = [];
$answer = new RuntimeException('timed out');
$gateway->ticket('alice@example.com');
$gateway->ticket('alice@example.com');
check('asked once more', count($asked), 1);
touch($marks()[0], time() - 61);
$answer = $good;
check('it is back', isset($gateway->ticket('alice@example.com')['url']), true);
check('the mark is gone', $marks(), []);

// It has been down for long: pages ask less often, but not ever less.
$answer = new RuntimeException('timed out');
$gateway->ticket('alice@example.com');
foreach ([240 => 120, 86400 => 300] as $age => $least) {
    file_put_contents($marks()[0], (string) (time() - $age));
    $wait = $gateway->ticket('alice@example.com')['retryAfterMs'];
    check("down for $age s: back after $wait", $wait >= 1000 * $least && $wait <= 1000 * $least + 31000, true);
}
array_map('unlink', $marks());

// Where nothing can be remembered, the log says so.
$logged = [];
(new mailbell_gateway('http://127.0.0.1:1', 'a token', 60, "$folder/nowhere", fn () => [500, [], ''], function ($line) use (&$logged) {
    $logged[] = $line;
}))->ticket('alice@example.com');
check('a folder that is not writable is logged', count($logged) === 2 && str_contains($logged[0], 'temp_dir'), true);

// A clock that was set back does not silence it for longer.
touch("$folder/mailbell-" . substr(sha1('http://127.0.0.1:8480/v1/connect'), 0, 16), time() + 86400);
check('a mark of tomorrow', $gateway->ticket('alice@example.com')['retryAfterMs'] <= 90000, true);
array_map('unlink', $marks());

// No notifier takes clients: come back when it says, without a rest for everybody.
$answer = [503, ['retry-after' => '2'], '{"error":{"message":"no notifier"}}'];
$asked = [];
check('busy', $gateway->ticket('alice@example.com'), ['retryAfterMs' => 2000]);
$gateway->ticket('alice@example.com');
check('busy, asked again', count($asked), 2);

array_map('unlink', $marks());
rmdir($folder);
echo $failures === 0 ? "ok\n" : "$failures failed\n";
exit($failures === 0 ? 0 : 1);
