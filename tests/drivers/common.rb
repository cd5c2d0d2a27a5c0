# What every script in Ruby needs: where the server or the proxy is, and which server a port belongs to. What a
# script prints has to be the same past the proxy and through it.

HOST = '127.0.0.1'
PORT = ENV.fetch('POINTSMAN_PORT').to_i
USER = ENV.fetch('POINTSMAN_USER')
PASSWORD = ENV.fetch('POINTSMAN_PASSWORD')
DATABASE = ENV.fetch('POINTSMAN_DATABASE')
PRIMARY = ENV.fetch('PRIMARY_PORT').to_i
REPLICAS = ENV.fetch('REPLICA_PORTS').split(',').map(&:to_i)

# Prints what the driver was told, without what differs between any two connections.
def told(what, *values)
  puts "#{what} #{values.inspect}".gsub(PORT.to_s, 'PORT').gsub(DATABASE, 'DATABASE')
end

def on_primary(what, *ports)
  raise "#{what}: ran on #{ports}, the primary is #{PRIMARY}" unless ports.all? { |port| port.to_i == PRIMARY }
end

def on_replicas(what, *ports)
  raise "#{what}: ran on #{ports}, the replicas are #{REPLICAS}" unless ports.all? { |port| REPLICAS.include?(port.to_i) }
end

# Waits until what the block asks is answered by a replica: it has to have what was written before.
def soon_on_replicas(what)
  limit = Time.now + 15
  until REPLICAS.include?((port = yield).to_i)
    on_replicas(what, port) if Time.now > limit
    sleep 0.02
  end
end

# Tells of the error that the block ends with.
def refused(what)
  yield
  told(what, 'no error')
rescue StandardError => error
  told(what, error.class, error.message)
end
