// Command host starts a plugin the way SPIRE's agent does, over go-plugin itself, and calls it as it is told: one JSON
// object a line on stdin, one on stdout for each, by its id, in whatever order they are done. Messages are those of the
// .proto files, compiled when it starts.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sort"
	"sync"
	"time"

	"github.com/bufbuild/protocompile"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

// request asks for Count calls of a method by Workers goroutines, or with Op "kill" for the end.
type request struct {
	ID        int               `json:"id"`
	Op        string            `json:"op"`
	Service   string            `json:"service"`
	Method    string            `json:"method"`
	Message   json.RawMessage   `json:"message"`
	TypeURL   string            `json:"type_url"` // of an Any called reference, with Value
	Value     []byte            `json:"value"`
	Metadata  map[string]string `json:"metadata"`
	Count     int               `json:"count"`
	Workers   int               `json:"workers"`
	TimeoutMS int               `json:"timeout_ms"`
	PauseMS   int               `json:"pause_ms"` // of each worker, after each call
}

// result says how many calls ended how: Ends counts "CODE message", or the answer as JSON.
type result struct {
	ID    int            `json:"id"`
	Ends  map[string]int `json:"ends"`
	P50   float64        `json:"p50_us"`
	P99   float64        `json:"p99_us"`
	Max   float64        `json:"max_us"`
	Took  float64        `json:"took_ms"`
	Error string         `json:"error,omitempty"`
}

// agent is go-plugin's idea of a plugin: it hands out the connection. As SPIRE's does, it serves its own services to the
// plugin through the broker.
type agent struct{ plugin.NetRPCUnsupportedPlugin }

func (agent) GRPCServer(*plugin.GRPCBroker, *grpc.Server) error { return nil }

func (agent) GRPCClient(_ context.Context, broker *plugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	go broker.AcceptAndServe(1, func(options []grpc.ServerOption) *grpc.Server { return grpc.NewServer(options...) })
	return conn, nil
}

type host struct {
	conn    *grpc.ClientConn
	methods map[string]protoreflect.MethodDescriptor
}

func main() {
	protos := flag.String("proto", "proto", "the folder of the .proto files")
	flag.Parse()
	signal.Ignore(os.Interrupt)
	methods, err := compile(*protos)
	check(err)
	client := plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig:  plugin.HandshakeConfig{ProtocolVersion: 1, MagicCookieKey: "WorkloadAttestor", MagicCookieValue: "WorkloadAttestor"},
		Plugins:          map[string]plugin.Plugin{"WorkloadAttestor": &agent{}},
		Cmd:              exec.Command(flag.Arg(0), flag.Args()[1:]...),
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		Logger:           hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, JSONFormat: true, Output: os.Stderr}),
	})
	defer client.Kill()
	started := time.Now()
	rpc, err := client.Client()
	check(err)
	dispensed, err := rpc.Dispense("WorkloadAttestor")
	check(err)
	host := host{dispensed.(*grpc.ClientConn), methods}
	write := printer()
	write(map[string]any{"id": 0, "pid": client.ReattachConfig().Pid, "took_ms": ms(time.Since(started))})

	var running sync.WaitGroup
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var asked request
		check(json.Unmarshal(lines.Bytes(), &asked))
		if asked.Op == "kill" {
			killed := time.Now()
			client.Kill()
			write(result{ID: asked.ID, Took: ms(time.Since(killed))})
			continue
		}
		running.Add(1)
		go func() {
			defer running.Done()
			write(host.run(asked))
		}()
	}
	running.Wait()
}

// run makes the calls of a request.
func (h host) run(asked request) result {
	var mutex sync.Mutex
	var all sync.WaitGroup
	ends := map[string]int{}
	times := []float64{}
	calls := make(chan struct{}, max(asked.Count, 1))
	for range max(asked.Count, 1) {
		calls <- struct{}{}
	}
	close(calls)
	started := time.Now()
	for range max(asked.Workers, 1) {
		all.Add(1)
		go func() {
			defer all.Done()
			for range calls {
				end, took := h.call(asked)
				mutex.Lock()
				ends[end]++
				times = append(times, float64(took.Nanoseconds())/1e3)
				mutex.Unlock()
				time.Sleep(time.Duration(asked.PauseMS) * time.Millisecond)
			}
		}()
	}
	all.Wait()
	sort.Float64s(times)
	at := func(part float64) float64 { return times[int(part*float64(len(times)-1))] }
	return result{ID: asked.ID, Ends: ends, P50: at(.5), P99: at(.99), Max: at(1), Took: ms(time.Since(started))}
}

// call makes one call and says how it ended, and how long the call itself took.
func (h host) call(asked request) (string, time.Duration) {
	ctx := metadata.NewOutgoingContext(context.Background(), metadata.New(asked.Metadata))
	if asked.TimeoutMS > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(asked.TimeoutMS)*time.Millisecond)
		defer cancel()
	}
	name := "/" + asked.Service + "/" + asked.Method
	method, known := h.methods[name]
	if !known { // any message will do for a service that is not there
		method = h.methods["/plugin.GRPCController/Shutdown"]
	}
	message, answer := dynamicpb.NewMessage(method.Input()), dynamicpb.NewMessage(method.Output())
	if len(asked.Message) > 0 {
		if err := protojson.Unmarshal(asked.Message, message); err != nil {
			return "host: " + err.Error(), 0
		}
	}
	if asked.TypeURL != "" {
		field := method.Input().Fields().ByName("reference")
		reference := message.Mutable(field).Message()
		reference.Set(field.Message().Fields().ByName("type_url"), protoreflect.ValueOfString(asked.TypeURL))
		reference.Set(field.Message().Fields().ByName("value"), protoreflect.ValueOfBytes(asked.Value))
	}
	began := time.Now()
	err := h.conn.Invoke(ctx, name, message, answer)
	took := time.Since(began)
	if err != nil {
		return status.Code(err).String() + " " + status.Convert(err).Message(), took
	}
	text, err := protojson.Marshal(answer)
	if err != nil {
		return "host: " + err.Error(), took
	}
	var plain any // protojson varies its white space on purpose
	_ = json.Unmarshal(text, &plain)
	text, _ = json.Marshal(plain)
	return string(text), took
}

// compile gives the methods of all services in the .proto files of a folder, by the path they are called at.
func compile(folder string) (map[string]protoreflect.MethodDescriptor, error) {
	paths, err := filepath.Glob(filepath.Join(folder, "*", "*.proto"))
	if err != nil || len(paths) == 0 {
		return nil, fmt.Errorf("no .proto files in %s: %v", folder, err)
	}
	compiler := protocompile.Compiler{Resolver: protocompile.WithStandardImports(&protocompile.SourceResolver{})}
	files, err := compiler.Compile(context.Background(), paths...)
	if err != nil {
		return nil, err
	}
	methods := map[string]protoreflect.MethodDescriptor{}
	for _, file := range files {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				method := service.Methods().Get(j)
				methods["/"+string(service.FullName())+"/"+string(method.Name())] = method
			}
		}
	}
	return methods, nil
}

func printer() func(any) {
	var mutex sync.Mutex
	encoder := json.NewEncoder(os.Stdout)
	return func(said any) {
		mutex.Lock()
		defer mutex.Unlock()
		check(encoder.Encode(said))
	}
}

func ms(took time.Duration) float64 { return float64(took.Nanoseconds()) / 1e6 }

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "host:", err)
		plugin.CleanupClients()
		os.Exit(1)
	}
}
