-- Acquires and releases leases: a later request of the same thread releases the lease of an earlier answer. Every
-- eighth request is a keep-alive of one key.
local leases, keys, count = {}, {}, 0
local json = { ["Content-Type"] = "application/json" }

function request()
  count = count + 1
  if count % 8 == 0 and keys[1] then
    return wrk.format("POST", "/v1/pools/default/keys/" .. keys[count % #keys + 1] .. "/keepalive")
  end
  local lease = table.remove(leases)
  if lease then
    return wrk.format("POST", "/v1/pools/default/leases/" .. lease .. "/release")
  end
  return wrk.format("POST", "/v1/pools/default/leases", json, '{"holder":"job-7"}')
end

function response(status, headers, body)
  if status ~= 201 then return end
  local lease = body:match('"id":"([^"]+)"')
  local key = body:match('"key_id":"([^"]+)"')
  if lease then leases[#leases + 1] = lease end
  if key and #keys < 1000 then keys[#keys + 1] = key end
end
