// Command hcl decodes configurations with the Go module that SPIRE's agent uses: a JSON list of texts on stdin, a JSON
// list on stdout of what each is: whether it parses, whether it decodes, and the values.
package main

import (
	"encoding/json"
	"os"

	"github.com/hashicorp/hcl"
)

type config struct {
	KubeletReadOnlyPort       int    `hcl:"kubelet_read_only_port" json:"kubelet_read_only_port"`
	KubeletSecurePort         int    `hcl:"kubelet_secure_port" json:"kubelet_secure_port"`
	MaxPollAttempts           int    `hcl:"max_poll_attempts" json:"max_poll_attempts"`
	PollRetryInterval         string `hcl:"poll_retry_interval" json:"poll_retry_interval"`
	TokenPath                 string `hcl:"token_path" json:"token_path"`
	NodeName                  string `hcl:"node_name" json:"node_name"`
	SkipKubeletVerification   bool   `hcl:"skip_kubelet_verification" json:"skip_kubelet_verification"`
	DisableContainerSelectors bool   `hcl:"disable_container_selectors" json:"disable_container_selectors"`
	UseNewContainerLocator    *bool  `hcl:"use_new_container_locator" json:"use_new_container_locator"`
	Experimental              *struct {
		APIServer *struct {
			Cache *struct {
				Enabled bool `hcl:"enabled" json:"enabled"`
			} `hcl:"cache" json:"cache"`
		} `hcl:"api_server" json:"api_server"`
	} `hcl:"experimental" json:"experimental"`
}

type vector struct {
	Parses  bool    `json:"parses"`
	Decodes bool    `json:"decodes"`
	Values  *config `json:"values"`
}

func main() {
	var texts []string
	if err := json.NewDecoder(os.Stdin).Decode(&texts); err != nil {
		panic(err)
	}
	vectors := []vector{}
	for _, text := range texts {
		vectors = append(vectors, decode(text))
	}
	if err := json.NewEncoder(os.Stdout).Encode(vectors); err != nil {
		panic(err)
	}
}

func decode(text string) (found vector) {
	defer func() {
		if recover() != nil { // the module panics on some texts; the agent would not survive it
			found = vector{}
		}
	}()
	if _, err := hcl.Parse(text); err != nil {
		return found
	}
	found.Parses = true
	values := config{}
	if err := hcl.Decode(&values, text); err != nil {
		return found
	}
	found.Decodes, found.Values = true, &values
	return found
}
