-- Windows of one partition, written by the worker that holds its claim, while nobody else moves the watermark.
--
-- KEYS[1]   the watermark; KEYS[2] the claim; KEYS[3] the users not encoded yet; KEYS[4…] the rows. All carry one tag.
-- ARGV[1]   offset that the watermark must have, '' if there must be none
-- ARGV[2]   token that the claim must hold       ARGV[3]  ms that a row lives
-- then for each row: user id, state, trigger
--
-- Returns 1 when written; 0 when the claim is another's; -1 when the watermark was moved. Then nothing is written.
if redis.call('GET', KEYS[2]) ~= ARGV[2] then
  return 0
end
if (redis.call('HGET', KEYS[1], 'offset') or '') ~= ARGV[1] then
  return -1
end
local next = 4
for row = 4, #KEYS do
  redis.call('HSET', KEYS[row], 'state', ARGV[next + 1], 'trigger', ARGV[next + 2])
  redis.call('PEXPIRE', KEYS[row], ARGV[3])
  redis.call('SADD', KEYS[3], ARGV[next])
  next = next + 3
end
return 1
