package main

import "fmt"

// show prints the first rows that came by each path, and what came of the order that the demo wrote.
func show(all []*follower, order []string) {
	for _, path := range []string{"HTTP", "NATS"} {
		f := find(all, path, "products")
		say("\nproducts over %s, the first rows and the last heartbeat:", path)
		f.mu.Lock()
		lines(f.first)
		lines([]string{f.heartbeat})
		f.mu.Unlock()
	}
	say("\norder_lines over HTTP, an order that was written just now, and then deleted, each with a heartbeat behind it:")
	lines(order)
	say("\nEach row that the demo wrote has arrived over HTTP and over NATS as Postgres holds it, with a heartbeat behind it.")
}

func lines(docs []string) {
	for _, doc := range docs {
		say("  %s", doc)
	}
}

// commands prints what to try, ready to be copied.
func commands(s *servers, all []*follower) {
	since := find(all, "HTTP", "products").position()
	fmt.Printf(`
Try, in another terminal, in this folder:

  # a table, a feed with deletes, a joined view; each stays live until Ctrl-C
  curl -sN http://%[1]s/products
  curl -sN http://%[1]s/orders_feed
  curl -sN http://%[1]s/order_lines

  # only what changed since transaction %[2]d; the state as it is now, and the end; all relations
  curl -sN 'http://%[1]s/products?since=%[2]d'
  curl -s 'http://%[1]s/products?follow=0'
  curl -s http://%[1]s/

  # the same rows from NATS
  NATS_URL=nats://%[3]s ./bin/bridge tail products

  # change something and watch it arrive
  psql '%[4]s' -c "UPDATE products SET price = price + 1 WHERE id = 1"

  # how the bridge is doing
  curl -s http://%[5]s/readyz
  curl -s http://%[5]s/metrics

`, s.edge, since, s.nats, s.shop, s.ops)
}
