-- mailbell.lua: tells the mailbell agent what changes in Dovecot's mailboxes.
--
-- Dovecot 2.3.19 or later with the plugins notify, push_notification, mail_lua and
-- push_notification_lua; see mailbell.conf beside this file. It needs nothing else: no Lua
-- modules, no JSON library.
--
-- Dovecot calls begin_txn, then an event function for each message or flag change, then
-- end_txn, and it waits for each. So this script
--   * gathers the messages of a transaction, and posts once, as ranges: a STORE on 5,000
--     messages is a body of some 400 bytes, not of 1.7 MB;
--   * gives the agent one second to answer, once: it never tries again;
--   * leaves the agent alone for some seconds after it did not answer in time, so that a
--     command of several transactions waits for one second in all;
--   * never lets an error out: mail is delivered whatever happens here.
--
-- Settings, all optional, in Dovecot's plugin { } section (variables such as %u are expanded
-- for each user):
--   mailbell_url           where the agent listens   (http://127.0.0.1:8480/dovecot/v1/events)
--   mailbell_token         service token with scope publish; none for an agent that trusts
--                          programs on its own machine
--   mailbell_account       the account to report for (the user's name)
--   mailbell_timeout_msecs how long to wait for the agent, at most 1000 (1000)

local DEFAULT_URL = "http://127.0.0.1:8480/dovecot/v1/events"
local MAX_TIMEOUT = 1000 -- milliseconds
local REST = 5           -- seconds without a try after the agent did not answer in time
local MAX_GROUPS = 64    -- kinds of change told apart in a transaction
local MAX_UIDS = 200000  -- messages of a transaction that are kept apart
local MAX_RANGES = 8000  -- ranges of messages in a report, some 150 kB

-- Dovecot's own HTTP status codes for requests that got no answer (http-client.h).
local ABORTED, TIMED_OUT = 9000, 9008

local clients = {}     -- HTTP client by timeout; each keeps its connection
local resting_until = 0

local ESCAPES = {['"'] = '\\"', ["\\"] = "\\\\"}

local function quote(s)
  s = tostring(s):gsub('[%c"\\]', function(c)
    return ESCAPES[c] or string.format("\\u%04x", c:byte())
  end)
  return '"' .. s .. '"'
end

-- number writes what Lua may hold as a float without exponent or fraction.
local function number(n)
  return string.format("%.0f", n)
end

local function quote_all(list)
  local out = {}
  for i, s in ipairs(list or {}) do out[i] = quote(s) end
  return "[" .. table.concat(out, ",") .. "]"
end

local function add_uid(ctx, group, uid)
  if group.truncated or uid == nil then return end
  if ctx.uids >= MAX_UIDS then
    group.truncated = true
    group.uids = {}
    return
  end
  ctx.uids = ctx.uids + 1
  group.uids[#group.uids + 1] = uid
end

-- uidset writes a group's messages as an IMAP sequence set. Dovecot brings them in the order of
-- a hash table.
local function uidset(ctx, group)
  table.sort(group.uids)
  local ranges = {}
  local lo, hi
  local function close()
    if lo == nil then return end
    ranges[#ranges + 1] = hi > lo and number(lo) .. ":" .. number(hi) or number(lo)
  end
  for _, uid in ipairs(group.uids) do
    if hi == nil or uid > hi + 1 then
      close()
      lo = uid
    end
    hi = uid
  end
  close()
  ctx.ranges = ctx.ranges + #ranges
  return table.concat(ranges, ",")
end

-- gather adds an event to those of its kind: same name, mailbox and flags.
local function gather(ctx, event)
  local name = event.name
  local flags, keywords
  if event.flags ~= nil or event.keywords ~= nil then
    flags, keywords = quote_all(event.flags), quote_all(event.keywords)
    if flags == "[]" and keywords == "[]" and (name == "FlagsSet" or name == "FlagsClear") then
      return -- Dovecot reports both for every STORE, whichever applies
    end
  end
  local key = table.concat({name, event.mailbox, event.mailbox_old or "", flags or "", keywords or ""}, "\0")
  local group = ctx.index[key]
  if group == nil then
    if #ctx.groups >= MAX_GROUPS then
      key = name .. "\0" .. event.mailbox
      group = ctx.index[key]
      if group == nil and #ctx.groups >= 2 * MAX_GROUPS then return end
    end
    if group == nil then
      group = {
        name = name, mailbox = event.mailbox, mailbox_old = event.mailbox_old, uid_validity = event.uid_validity,
        flags = flags, keywords = keywords, uids = {}, truncated = #ctx.groups >= MAX_GROUPS,
      }
      ctx.groups[#ctx.groups + 1] = group
      ctx.index[key] = group
    end
  end
  add_uid(ctx, group, event.uid)
end

local function event_json(ctx, group)
  local out = {'"name":' .. quote(group.name), '"mailbox":' .. quote(group.mailbox)}
  if group.mailbox_old then out[#out + 1] = '"mailbox_old":' .. quote(group.mailbox_old) end
  if group.uid_validity then out[#out + 1] = '"uid_validity":' .. number(group.uid_validity) end
  if group.flags then out[#out + 1] = '"flags":' .. group.flags end
  if group.keywords then out[#out + 1] = '"keywords":' .. group.keywords end
  local uids = not group.truncated and #group.uids > 0 and uidset(ctx, group) or nil
  if group.truncated or ctx.ranges > MAX_RANGES then
    out[#out + 1] = '"truncated":true'
  elseif uids then
    out[#out + 1] = '"uidset":"' .. uids .. '"'
  end
  return "{" .. table.concat(out, ",") .. "}"
end

-- status_json asks Dovecot how the mailbox stands now. A mailbox that is gone has no status.
local function status_json(user, name)
  local out
  local box = user:mailbox(name)
  local ok = pcall(function()
    box:sync()
    local s = box:status(dovecot.storage.STATUS_MESSAGES, dovecot.storage.STATUS_UNSEEN,
      dovecot.storage.STATUS_UIDNEXT, dovecot.storage.STATUS_UIDVALIDITY, dovecot.storage.STATUS_HIGHESTMODSEQ)
    out = string.format('{"messages":%s,"unseen":%s,"uidnext":%s,"uidvalidity":%s,"highest_modseq":%s}',
      number(s.messages), number(s.unseen), number(s.uidnext), number(s.uidvalidity), number(s.highest_modseq))
  end)
  pcall(function() box:free() end)
  return ok and out or nil
end

local function body(ctx)
  local user = ctx.user
  local events, statuses, asked = {}, {}, {}
  for i, group in ipairs(ctx.groups) do
    events[i] = event_json(ctx, group)
    if group.name ~= "MailboxDelete" and not asked[group.mailbox] then
      asked[group.mailbox] = true
      local ok, status = pcall(status_json, user, group.mailbox)
      if ok and status then statuses[#statuses + 1] = quote(group.mailbox) .. ":" .. status end
    end
  end
  local out = {'"user":' .. quote(user.username)}
  local account = user:plugin_getenv("mailbell_account")
  if account and account ~= "" then out[#out + 1] = '"account":' .. quote(account) end
  -- Who logged in, where a master user acts for another.
  local ok, actor = pcall(function() return user:var_expand("%{auth_user}") end)
  if ok and actor and actor ~= "" and not actor:find("UNSUPPORTED", 1, true) then
    out[#out + 1] = '"actor":' .. quote(actor)
  end
  if user.service and user.service ~= "" then out[#out + 1] = '"service":' .. quote(user.service) end
  if user.session_id and user.session_id ~= "" then out[#out + 1] = '"session":' .. quote(user.session_id) end
  out[#out + 1] = '"events":[' .. table.concat(events, ",") .. "]"
  out[#out + 1] = '"status":{' .. table.concat(statuses, ",") .. "}"
  return "{" .. table.concat(out, ",") .. "}"
end

local function client(timeout)
  if clients[timeout] == nil then
    clients[timeout] = dovecot.http.client({
      request_absolute_timeout_msecs = timeout,
      request_timeout_msecs = timeout,
      connect_backoff_time_msecs = 1, -- 0 would mean the default, 100 doubled again and again
      connect_backoff_max_time_msecs = 1,
      soft_connect_timeout_msecs = timeout,
      max_attempts = 1,
      max_connect_attempts = 1,
      max_redirects = 0,
      auto_retry = false,
      max_idle_time_msecs = 5000,
      user_agent = "mailbell.lua",
    })
  end
  return clients[timeout]
end

local function post(ctx, payload)
  local user = ctx.user
  local timeout = math.floor(tonumber(user:plugin_getenv("mailbell_timeout_msecs") or "") or MAX_TIMEOUT)
  timeout = math.min(math.max(timeout, 10), MAX_TIMEOUT)
  local url = user:plugin_getenv("mailbell_url")
  if url == nil or url == "" then url = DEFAULT_URL end
  local request = client(timeout):request({url = url, method = "POST"})
  request:add_header("Content-Type", "application/json")
  local token = user:plugin_getenv("mailbell_token")
  if token and token ~= "" then request:add_header("Authorization", "Bearer " .. token) end
  request:set_payload(payload)
  local response = request:submit()
  local status = response:status()
  if status >= 200 and status < 300 then return end
  if status == TIMED_OUT then resting_until = os.time() + REST end
  dovecot.i_error(string.format("mailbell: the agent at %s did not take %d changes of %s: %d %s",
    url, #ctx.groups, user.username, status, status >= ABORTED and "no answer" or tostring(response:reason())))
end

-- guarded runs fn and logs its error instead of letting it out.
local function guarded(what, fn, ...)
  local ok, err = pcall(fn, ...)
  if not ok then pcall(dovecot.i_error, "mailbell: " .. what .. ": " .. tostring(err)) end
end

local function handler(ctx, event)
  if ctx ~= nil then guarded("gather", gather, ctx, event) end
end

function dovecot_lua_notify_begin_txn(user)
  return {user = user, groups = {}, index = {}, uids = 0, ranges = 0}
end

function dovecot_lua_notify_end_txn(ctx, success)
  if ctx == nil or not success or #ctx.groups == 0 then return end
  if os.time() < resting_until then
    guarded("log", dovecot.i_warning, "mailbell: the agent did not answer in time a moment ago; a change of " ..
      ctx.user.username .. " is not reported")
    return
  end
  guarded("post", function() post(ctx, body(ctx)) end)
end

dovecot_lua_notify_event_message_new = handler
dovecot_lua_notify_event_message_append = handler
dovecot_lua_notify_event_message_expunge = handler
dovecot_lua_notify_event_flags_set = handler
dovecot_lua_notify_event_flags_clear = handler
dovecot_lua_notify_event_mailbox_create = handler
dovecot_lua_notify_event_mailbox_delete = handler
dovecot_lua_notify_event_mailbox_rename = handler
dovecot_lua_notify_event_mailbox_subscribe = handler
dovecot_lua_notify_event_mailbox_unsubscribe = handler

-- message_read and message_trash are left out: Dovecot reports a FlagsSet beside each.

function script_init()
  return 0
end

function script_deinit()
end
