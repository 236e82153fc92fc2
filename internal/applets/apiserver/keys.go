package apiserver

import (
	"time"

	"k8s.io/apiserver/pkg/server/options/encryptionconfig/controller"
)

// keysPoll is how often the API server looks whether its encryption configuration is another one, by reading and hashing
// a file of some hundred bytes. With upstream's minute most of a change of keys is waiting for that.
const keysPoll = 5 * time.Second

// lookForKeys puts keysPoll into force, in a variable of upstream's: it has to be called inside kubeglobals.Setup.
func lookForKeys() { controller.EncryptionConfigFileChangePollDuration = keysPoll }
