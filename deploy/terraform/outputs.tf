output "buckets" {
  description = "Names of the buckets, by what they are for."
  value       = { for key, bucket in google_storage_bucket.bucket : key => bucket.name }
}

output "images" {
  description = "Where images are pushed to."
  value       = "${var.region}-docker.pkg.dev/${var.project}/${google_artifact_registry_repository.images.name}"
}

output "beam_flags" {
  description = "Flags of every job here."
  value = join(" ", [
    "--project=${var.project}",
    "--region=${var.region}",
    "--temp_location=gs://${google_storage_bucket.bucket["temp"].name}/tmp",
    "--service_account_email=${google_service_account.worker.email}",
    "--subnetwork=regions/${var.region}/subnetworks/${google_compute_subnetwork.workers.name}",
    "--no_use_public_ips",
  ])
}
