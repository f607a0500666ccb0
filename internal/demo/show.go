package main

import "fmt"

// show prints the first rows that arrived over HTTP and over NATS, and the documents of the order that probe wrote.
func show(all []*follower, order []string) {
	for _, path := range []string{"HTTP", "NATS"} {
		f := find(all, path, "products")
		say("\nproducts over %s, the first rows and the last heartbeat:", path)
		f.mu.Lock()
		lines(f.first)
		lines([]string{f.heartbeat})
		f.mu.Unlock()
	}
	say("\norder_lines over HTTP: an order that was just written, then deleted, each followed by a heartbeat:")
	lines(order)
	say("\nEvery row that the demo wrote arrived over HTTP and over NATS as Postgres holds it, followed by a heartbeat.")
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
Try these in another terminal, in this directory:

  # a table, a table with its deletes, a view that joins two tables; each shows changes until Ctrl-C
  curl -sN http://%[1]s/products
  curl -sN http://%[1]s/orders_feed
  curl -sN http://%[1]s/order_lines

  # what changed since transaction %[2]d; the current state only, then the end; the list of relations
  curl -sN 'http://%[1]s/products?since=%[2]d'
  curl -s 'http://%[1]s/products?follow=0'
  curl -s http://%[1]s/

  # the same rows from NATS
  NATS_URL=nats://%[3]s ./bin/bridge tail products

  # change something and watch it arrive
  psql '%[4]s' -c "UPDATE products SET price = price + 1 WHERE id = 1"

  # is every relation live, and if not, why; metrics
  curl -s http://%[5]s/readyz
  curl -s http://%[5]s/metrics

`, s.edge, since, s.nats, s.shop, s.ops)
}
