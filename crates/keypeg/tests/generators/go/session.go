// One session with the client that openapi-generator makes for Go: every answer is decoded.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"

	keypeg "example.invalid/keypeg"
)

const pool = "generated-go"

func check(condition bool, context ...any) {
	if !condition {
		panic(fmt.Sprint(context...))
	}
}

// refused checks the status and the code of a refusal.
func refused(response *http.Response, err error, status int, code keypeg.Code) keypeg.Problem {
	var generic *keypeg.GenericOpenAPIError
	check(errors.As(err, &generic), "not an error of the API: ", err)
	problem, decoded := generic.Model().(keypeg.Problem)
	check(decoded && response.StatusCode == status && problem.Code == code, status, err, problem)
	return problem
}

func main() {
	ctx := context.Background()
	configuration := keypeg.NewConfiguration()
	configuration.Servers = keypeg.ServerConfigurations{{URL: os.Args[1]}}
	client := keypeg.NewAPIClient(configuration)
	keys, leases, pools := client.KeysAPI, client.LeasesAPI, client.PoolsAPI

	policy := keypeg.NewPolicyRequest()
	policy.SetLeaseTtlSeconds(30)
	policy.SetMaxHoldSeconds(60)
	made, _, err := pools.PutPool(ctx, pool).PolicyRequest(*policy).Execute()
	check(err == nil && made.LeaseTtlSeconds == 30, err, made)
	request := keypeg.NewGenerateRequest()
	request.SetCount(2)
	added, _, err := keys.AddKeys(ctx, pool).GenerateRequest(*request).Execute()
	check(err == nil && len(added.Keys) == 2, err)
	values := map[string]string{}
	for _, key := range added.Keys {
		values[key.Id] = key.Key
	}

	first, _, err := leases.Acquire(ctx, pool).Execute()
	check(err == nil && values[first.KeyId] == first.Key, err)
	second, _, err := leases.Acquire(ctx, pool).Execute()
	check(err == nil && second.FencingToken > first.FencingToken, err)
	check(first.ExpiresAt.After(first.GrantedAt), first)

	_, response, err := leases.Acquire(ctx, pool).Execute()
	none := refused(response, err, 404, keypeg.NO_KEY_AVAILABLE)
	check(none.GetLeased() == 2, none)
	wrong := keypeg.NewAcquireRequest()
	wrong.SetTtlSeconds(0)
	_, response, err = leases.Acquire(ctx, pool).AcquireRequest(*wrong).Execute()
	invalid := refused(response, err, 422, keypeg.INVALID)
	check(invalid.GetField() == "ttl_seconds", invalid)

	lease, _, err := leases.Renew(ctx, pool, first.Id).Execute()
	check(err == nil && lease.FencingToken == first.FencingToken, err)
	quarantine := keypeg.NewReleaseRequest()
	quarantine.SetQuarantine(true)
	response, err = leases.Release(ctx, pool, first.Id).ReleaseRequest(*quarantine).Execute()
	check(err == nil && response.StatusCode == 204, err)
	response, err = leases.Release(ctx, pool, first.Id).Execute()
	refused(response, err, 410, keypeg.LEASE_ENDED)

	page, _, err := keys.ListKeys(ctx, pool).Limit(1).Execute()
	check(err == nil && len(page.Keys) == 1 && page.NextCursor.IsSet(), err)
	quarantined, _, err := keys.ListKeys(ctx, pool).State(keypeg.QUARANTINED).Execute()
	check(err == nil && len(quarantined.Keys) == 1 && quarantined.Keys[0].Id == first.KeyId, err)

	_, err = pools.DeletePool(ctx, pool).Execute()
	check(err == nil, err)
	_, response, err = pools.ShowPool(ctx, pool).Execute()
	refused(response, err, 404, keypeg.UNKNOWN_POOL)
}
