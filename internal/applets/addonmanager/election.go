package addonmanager

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// elect runs m while it holds the lease, again and again until ctx ends: with several servers, each with
// the same packaged manifests, one acts.
func elect(ctx context.Context, log *slog.Logger, config *rest.Config, m *manager) error {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("making a client: %w", err)
	}
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("asking for the host name: %w", err)
	}
	lock := &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: inventoryNamespace, Name: "k1s-addon-manager"},
		Client:     client.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: host + "_" + rand.Text()},
	}
	for ctx.Err() == nil {
		if err := m.write(report{Standby: true, Stacks: []stackReport{}}); err != nil {
			log.Error("status not written", "file", m.o.statusFile, "err", err)
		}
		var (
			mu   sync.Mutex // guards over and adding to acting
			over bool
			// The elector starts its callback in a goroutine it does not wait for.
			acting sync.WaitGroup
			failed error // written by acting
		)
		le, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock:            lock,
			LeaseDuration:   15 * time.Second,
			RenewDeadline:   10 * time.Second,
			RetryPeriod:     2 * time.Second,
			ReleaseOnCancel: true,
			Name:            "k1s-addon-manager",
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(ctx context.Context) {
					mu.Lock()
					if over {
						mu.Unlock()
						return
					}
					acting.Add(1)
					mu.Unlock()
					defer acting.Done()
					failed = m.run(ctx)
				},
				OnStoppedLeading: func() {},
			},
		})
		if err != nil {
			return fmt.Errorf("preparing the election: %w", err)
		}
		le.Run(ctx) // until the lease is lost or ctx ends
		mu.Lock()
		over = true
		mu.Unlock()
		acting.Wait()
		if failed != nil {
			return failed
		}
		log.Info("not leading any more")
	}
	return nil
}
