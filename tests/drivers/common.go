// What every program in Go needs: where the server or the proxy is, and which server a port belongs to. What a
// program prints has to be the same past the proxy and through it.
package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

var (
	endpoint = os.Getenv("POINTSMAN_PORT")
	user     = os.Getenv("POINTSMAN_USER")
	password = os.Getenv("POINTSMAN_PASSWORD")
	database = os.Getenv("POINTSMAN_DATABASE")
	primary  = number(os.Getenv("PRIMARY_PORT"))
	replicas = map[int]bool{}
)

func init() {
	for _, port := range strings.Split(os.Getenv("REPLICA_PORTS"), ",") {
		replicas[number(port)] = true
	}
}

func number(text string) int {
	n, err := strconv.Atoi(text)
	must(err)
	return n
}

// must ends the program with an error that should not be.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// told prints what the driver was told, without what differs between any two connections.
func told(what string, values ...interface{}) {
	line := strings.TrimSuffix(fmt.Sprintln(append([]interface{}{what}, values...)...), "\n")
	fmt.Println(strings.NewReplacer(endpoint, "PORT", database, "DATABASE").Replace(line))
}

func onPrimary(what string, port int) {
	if port != primary {
		panic(fmt.Sprintf("%s: ran on %d, the primary is %d", what, port, primary))
	}
}

func onReplicas(what string, port int) {
	if !replicas[port] {
		panic(fmt.Sprintf("%s: ran on %d, the replicas are %v", what, port, replicas))
	}
}

// soonOnReplicas waits until what is asked is answered by a replica: it has to have what was written before.
func soonOnReplicas(what string, port func() int) {
	limit := time.Now().Add(15 * time.Second)
	for seen := port(); !replicas[seen]; seen = port() {
		if time.Now().After(limit) {
			onReplicas(what, seen)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
