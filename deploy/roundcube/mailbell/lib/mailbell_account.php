<?php

/**
 * From a Roundcube user to the account whose events he may hear.
 *
 * Pure: no Roundcube, no I/O.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
class mailbell_account
{
    /** What mailbell takes: 320 bytes, the longest address of RFC 5321. */
    private const MAX_BYTES = 320;

    /** Rules that have a name. */
    private const NAMED = ['login' => '%u', 'email' => '%e'];

    /**
     * The account by a rule.
     *
     * @param string $rule "login", "email", or a format: %u the login name, %n and %d its parts before and after
     *                     the @, %e the e-mail address that Roundcube makes of the login name and the mail domain,
     *                     %h the IMAP server, %% a %. Never an identity's address: users edit these, and would
     *                     hear of others' mail.
     *                     An L after the % makes it lower case: %Lu.
     * @param array  $user login, email and host, as Roundcube knows them
     *
     * @return string
     * @throws InvalidArgumentException if the rule is wrong, or makes no account of this user
     */
    public static function of(string $rule, array $user): string
    {
        [$name, $domain] = array_pad(explode('@', $user['login'] ?? '', 2), 2, '');
        $values = [
            'u' => $user['login'] ?? '', 'n' => $name, 'd' => $domain,
            'e' => $user['email'] ?? '', 'h' => $user['host'] ?? '', '%' => '%',
        ];
        $account = preg_replace_callback('/%(L?)(.?)/su', function ($found) use ($rule, $values) {
            if (!isset($values[$found[2]])) {
                throw new InvalidArgumentException(
                    "mailbell_account: \"{$found[0]}\" in \"$rule\": use %u, %n, %d, %e, %h or %%"
                );
            }
            if ($values[$found[2]] === '') {
                throw new InvalidArgumentException("mailbell_account: \"$rule\": this user has no {$found[0]}");
            }
            return $found[1] ? mb_strtolower($values[$found[2]], 'UTF-8') : $values[$found[2]];
        }, self::NAMED[$rule] ?? $rule);

        if (!self::valid((string) $account)) {
            throw new InvalidArgumentException(
                "mailbell_account: \"$rule\" must make 1 to " . self::MAX_BYTES
                . ' bytes of UTF-8 without control characters, and no space at either end'
            );
        }
        return $account;
    }

    private static function valid(string $account): bool
    {
        return $account !== '' && strlen($account) <= self::MAX_BYTES
            && preg_match('/^[^\p{Cc}]+$/Du', $account) === 1
            && preg_match('/^\s|\s$/u', $account) === 0;
    }
}
