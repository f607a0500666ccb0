-- One round of the sample's writer, which runs it again and again: it adds an order, moves an older one on, changes a
-- price, and deletes the oldest orders once there are more than 50.

BEGIN;
INSERT INTO orders (product_id, customer, quantity)
SELECT p.id, (ARRAY['Ada', 'Grace', 'Edsger', 'Barbara', 'Zoë'])[1 + floor(random() * 5)::int], 1 + floor(random() * 4)::int
FROM products p ORDER BY random() LIMIT 1;
UPDATE orders SET status = CASE status WHEN 'new' THEN 'packed' ELSE 'sent' END
WHERE id = (SELECT id FROM orders WHERE status <> 'sent' ORDER BY random() LIMIT 1);
COMMIT;

UPDATE products SET price = greatest(1, round(price * (0.95 + random() * 0.1)::numeric, 2)), stock = stock + 1, changed_at = now()
WHERE id = (SELECT id FROM products ORDER BY random() LIMIT 1);

DELETE FROM orders WHERE id IN (SELECT id FROM orders ORDER BY id DESC OFFSET 50);
